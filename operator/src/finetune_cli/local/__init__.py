"""`finetune run`: the replicas of a job as local processes, and their output for people."""
