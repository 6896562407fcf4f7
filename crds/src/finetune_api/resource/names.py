"""Names of the resource and of what it leaves on other objects. They are persisted, so none may ever change.

Separate from the models: most importers need a name and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FinetuneJob"
PLURAL = "finetunejobs"
SHORT_NAME = "ftj"
CATEGORY = "finetune"
DESCRIPTION = "Finetunes a language model on a GPU cluster."

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_LENGTH = 45
"""Longest name of a job: the names of its pods and services, <name>-<run>-worker-<index>, end at 63."""

OBJECT_NAME_LENGTH = 253
"""Longest name that Kubernetes takes for any object."""

JOB_LABEL = f"{GROUP}/job"
"""Label on every child: name of the FinetuneJob."""
JOB_UID_LABEL = f"{GROUP}/job-uid"
"""Label on every child: UID of the FinetuneJob, so that a re-created job does not inherit children."""
RUN_LABEL = f"{GROUP}/run"
"""Label on every child: number of the run."""
RUN_CONFIG_ANNOTATION = f"{GROUP}/run-config"
"""Annotation on the pod template: the run configuration as JSON, mounted through the downward API."""
FIELD_MANAGER = "finetune-operator"
LEASE = "finetune-operator"
"""Name of the Lease that carries the operator's heartbeat, in the operator's own namespace."""
KUEUE_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
KUEUE_JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"
"""Label on Kueue's Workload: UID of the object that it admits."""
KUEUE_PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"

LABEL_DIGITS = 9
"""Longest number that we write into a label."""


def run_name(job: str, number: int) -> str:
    """Name of the object of a run, whatever its kind."""
    return f"{job}-{number}"


def job_of_run(run: str) -> str:
    """Name of the job that a run of that name belongs to; empty if it is not the name of a run."""
    return run.rpartition("-")[0]


def label_number(metadata: Mapping[str, Any], label: str) -> int:
    """The whole number in a label; 0 where it is absent or anything else, which anybody may write there."""
    text = str((metadata.get("labels") or {}).get(label, ""))
    return int(text) if text.isascii() and text.isdigit() and len(text) <= LABEL_DIGITS else 0
