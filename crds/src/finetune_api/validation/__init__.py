"""What is wrong with a FinetuneJob, said before anything is created: shape, unknown keys, rules, URIs."""
