"""The contract: what a FinetuneJob may say, what a run is told, and what a trainer reports.

Everything that two pieces of the product must agree on stands here, and nothing else: this package
imports neither Kubernetes nor torch, so every piece can import it.
"""
