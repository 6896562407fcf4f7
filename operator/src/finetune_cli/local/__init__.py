"""`finetune run`: the replicas of a planned run as processes of this machine, and what they say."""
