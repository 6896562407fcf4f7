"""The spec of a FinetuneJob, and its status."""
