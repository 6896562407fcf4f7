"""What a FinetuneJob may say and what its status says."""
