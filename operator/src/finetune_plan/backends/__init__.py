"""Renderings of a Workload. A new backend is one file here."""
