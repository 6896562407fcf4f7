"""What the resource is called. Apart from the models, because most who need a name need no model."""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FinetuneJob"
PLURAL = "finetunejobs"
SHORT_NAME = "ftj"
CATEGORY = "finetune"

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_LENGTH = 45
"""Longest name of a job: <name>-<run> names the PyTorchJob and <name>-<run>-worker-<index> its pods and
services, which end at 63."""
