"""`finetune`, also installed as `kubectl finetune`: jobs from the command line.

One verb a file in verbs/. Nothing here imports torch or kopf; `finetune run` starts the trainer as processes.
"""
