"""Names that Kubernetes objects carry: one place, because they may never change."""

from .names import GROUP

JOB = f"{GROUP}/job"
"""Label on every child: name of the FinetuneJob."""
JOB_UID = f"{GROUP}/job-uid"
"""Label on every child: UID of the FinetuneJob, so that a re-created job does not inherit children."""
RUN = f"{GROUP}/run"
"""Label on every child: number of the run."""
RUN_CONFIG = f"{GROUP}/run-config"
"""Annotation on the pod template: the run configuration as JSON, mounted through the downward API."""
FIELD_MANAGER = "finetune-operator"
KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
KUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"
REPLICA_INDEX = "training.kubeflow.org/replica-index"
"""Label that the Training Operator gives to pods: with workers alone, the rank of the node."""
