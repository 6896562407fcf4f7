"""The parts of a job that are Kubernetes' own: spelt in camelCase, pruned and checked by the API server."""

from typing import Annotated, Literal

from pydantic import Field

from . import defaults
from .keys import Native
from .keys import key as declare
from .sections import Uri

DnsLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
DnsName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]
Quantity = Annotated[
    str, Field(min_length=1, max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")
]
Labels = Annotated[dict[str, LabelValue], Field(max_length=32)]
"""A rule checks the keys: a structural schema cannot constrain the keys of a map."""
Seconds = Annotated[int, Field(ge=0, le=31536000)]


class Output(Native):
    """Where the result goes. It outlives the job."""

    uri: Uri | None = declare(
        "Folder of checkpoints and result: pvc://claim/folder. Several nodes need a claim that all can mount. "
        "A local run takes a path."
    )
    ephemeral: bool | None = declare(
        "true: without output.uri, checkpoints and result may be lost with the pods. For one node."
    )
    merge: bool | None = declare(
        "true: beside an adapter, the result has a folder merged, a Hugging Face model of base and adapter. Not with "
        "full finetuning, whose result is a model already. false if absent."
    )


class Toleration(Native):
    """As in a pod."""

    key: Annotated[str, Field(max_length=316)] | None = declare(
        "Taint key; empty with operator Exists means every taint."
    )
    operator: Literal["Equal", "Exists"] | None = declare("Equal (if absent) or Exists.")
    value: Annotated[str, Field(max_length=63)] | None = declare("Taint value, for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = declare(
        "Taint effect; absent means every effect."
    )
    tolerationSeconds: Seconds | None = declare("With NoExecute: seconds until eviction.")  # noqa: N815


class EnvVar(Native):
    """A plain variable. Secrets come through credentials, as files."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = declare(
        "Name. Loader, interpreter and plugin variables (LD_*, PYTHON*, NCCL_*_PLUGIN) are refused.",
        default=...,
    )
    value: Annotated[str, Field(max_length=1024)] = declare("Value.", default=...)


class Pods(Native):
    """Settings of the training pods. There is no free template: it would lend out the operator's rights."""

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = declare(
        "Trainer image. The operator's own if absent."
    )
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = declare("As in a pod.")  # noqa: N815
    imagePullSecrets: Annotated[tuple[DnsName, ...], Field(max_length=8)] | None = declare(  # noqa: N815
        "Names of registry secrets in the job's namespace."
    )
    cpu: Quantity | None = declare("CPU request of a pod.")
    memory: Quantity | None = declare("Memory request and limit of a pod, shared memory included.")
    sharedMemory: Quantity | None = declare("Size of /dev/shm, counted in memory. Half of memory if absent.")  # noqa: N815
    nodeSelector: Labels | None = declare("Labels that nodes must have, besides those of the gpu_type.")  # noqa: N815
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] | None = declare(
        "Taints that the pods tolerate."
    )
    labels: Labels | None = declare("Labels on the pods.")
    annotations: Annotated[dict[str, Annotated[str, Field(max_length=1024)]], Field(max_length=32)] | None = declare(
        "Annotations on the pods."
    )
    env: Annotated[tuple[EnvVar, ...], Field(max_length=64)] | None = declare("Plain environment variables.")
    priorityClassName: DnsName | None = declare("Priority class of the pods.")  # noqa: N815
    serviceAccountName: DnsName | None = declare(  # noqa: N815
        "Service account for a cloud identity. The administrator lists which ones may be named."
    )


class Network(Native):
    """How ranks reach each other."""

    profile: DnsLabel | None = declare(
        "Network profile of jobs on several nodes: one that the cluster knows, such as aws-efa; tcp or none: plain "
        "TCP; auto (if absent): the administrator's default for the gpu_type, without which such a job is refused."
    )


class Storage(Native):
    """Volumes besides data and output."""

    cacheClaim: DnsName | None = declare("Claim that keeps downloaded models for all jobs of the namespace.")  # noqa: N815


class Queue(Native):
    """Kueue."""

    name: DnsLabel | None = declare("LocalQueue that admits the job.")
    priorityClass: DnsName | None = declare("WorkloadPriorityClass of the job.")  # noqa: N815


class Lifecycle(Native):
    """Restarts, time limits, clean-up. May change at any time."""

    maxRestarts: Annotated[int, Field(ge=0, le=1000)] | None = declare(  # noqa: N815
        "New runs after failures, each after a longer delay. Preemption and suspension do not count. "
        f"{defaults.MAX_RESTARTS} if absent."
    )
    activeDeadlineSeconds: Annotated[int, Field(ge=1, le=31536000)] | None = declare(  # noqa: N815
        "Seconds for which pods of the job may be bound to nodes. Suspended, queued and unscheduled time and the "
        "delay before a restart do not count. The operator's default if absent, which is none unless set."
    )
    terminationGracePeriodSeconds: Annotated[int, Field(ge=30, le=86400)] | None = declare(  # noqa: N815
        "Seconds a pod has for one more step and a checkpoint. 300 if absent."
    )
    ttlSecondsAfterFinished: Seconds | None = declare(  # noqa: N815
        "Seconds after the end until the run and its pods are removed. The operator's default if absent; they stay "
        "if there is none."
    )


class SecretKey(Native):
    """One key of a secret in the job's namespace, mounted as a file. The operator never reads it."""

    secretName: DnsName = declare("Name of the secret.", default=...)  # noqa: N815
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] | None = declare(
        f"Key within it. {defaults.TOKEN_KEY} if absent."
    )


class Credentials(Native):
    """References to secrets."""

    huggingFace: SecretKey | None = declare("Token for the Hugging Face Hub.")  # noqa: N815
