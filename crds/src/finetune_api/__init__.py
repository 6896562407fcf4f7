"""The contract: what a FinetuneJob may contain, how a run is configured, and what a trainer reports.

Everything that two pieces of the product must agree on is here, and nothing else: this package
imports neither Kubernetes nor torch, so every piece can import it.
"""
