"""Validation of a FinetuneJob, before anything is created: shape, unknown keys, rules, URIs."""
