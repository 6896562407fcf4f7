"""`finetune`, also installed as `kubectl finetune`: the command line.

The modules in verbs/ hold the commands. Nothing here imports torch or kopf: `finetune run` starts the trainer as
processes.
"""
