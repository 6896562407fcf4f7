"""Why a condition is as it is: every reason with its sentence and its remedy, in one place.

A reason's name is part of the API: programs may compare it, so none ever changes. Messages are templates
(str.format). Reasons that come from elsewhere: broken rules (validation/rules.py) on Accepted, and how a trainer
ended (runtime/exits.py) on Complete, FailureTarget and Failed. docs/reference/conditions.md is made from this
table.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import conditions as c


@dataclass(frozen=True)
class Reason:
    """One reason, and the conditions that have it."""

    name: str
    on: tuple[str, ...]
    message: str
    remedy: str = ""

    def text(self, **values: object) -> str:
        """The message and the remedy, filled in."""
        return f"{self.message} {self.remedy}".strip().format(**values)


ACCEPTED = Reason("Accepted", (c.ACCEPTED,), "The job is valid.")
NOT_ACCEPTED = Reason(
    "NotAccepted", (c.READY,), "The job is not accepted.", "See the Accepted condition for every problem."
)
NOT_FINISHED = Reason("NotFinished", (c.READY,), "The job has not finished.")
INTERNAL_ERROR = Reason(
    "InternalError", (c.READY,), "The operator failed on this job: {error}.",
    "This is a bug; please report it with the operator's log. The operator tries again with increasing delays.",
)  # fmt: skip
ALREADY_COMPLETE = Reason(
    "AlreadyComplete", (c.COMPLETE, c.READY),
    "The claim {claim} already holds the result of this job, so nothing is trained.",
    "To train again, set output.uri to another folder.",
)  # fmt: skip

VALIDATION_SKIPPED = Reason(
    "ValidationSkipped", (c.ACCEPTED,),
    "data.validation_path is not set, so nothing is evaluated and the last checkpoint becomes the result. "
    "Rows are never split off silently.",
    "Set data.validation_path, or set training.validation.enabled to false to silence this note.",
)  # fmt: skip
VARIETY_YIELDS = Reason("VarietyYields", (c.ACCEPTED,), "{key} is {value}, but other keys select {method}.")
ADAPTERS_UNUSED = Reason("AdaptersUnused", (c.ACCEPTED,), "{key} is set, but full finetuning has no adapters.")
LENGTH_CAPPED = Reason("LengthCapped", (c.ACCEPTED,), "{key} is {value}, but {limit_key} caps it at {limit}.")
TF32_UNUSED = Reason(
    "Tf32Unused", (c.ACCEPTED,),
    "{key} is true, but the job computes in {precision} on {device}, so it changes nothing.",
)  # fmt: skip
WARMUP_DIFFERS = Reason(
    "WarmupDiffers", (c.ACCEPTED,),
    "{key} has no warmup_type: the learning rate rises by the same amount in each step, where DeepSpeed's default is "
    "logarithmic, and over hyperparameters.warmup_ratio of all steps.",
    "To silence this note, set warmup_type to linear.",
)  # fmt: skip
HOST_MEMORY_UNASKED = Reason(
    "HostMemoryUnasked", (c.ACCEPTED,),
    "{key} is cpu, but pods.memory is not set: pods ask for less memory than they then fill, and nodes may run out.",
)  # fmt: skip
NETWORK_UNUSED = Reason("NetworkUnused", (c.ACCEPTED,), "{key} is {value}, which only several nodes with GPUs use.")
GLOBAL_BATCH_DIFFERS = Reason(
    "GlobalBatchDiffers", (c.ACCEPTED,),
    "{key} is {target}, but {per_device} rows x {accumulation} passes x {replicas} replicas make {rows} rows per "
    "step; {rows} is used.",
)  # fmt: skip

READ = Reason("Read", (c.DATA_READY,), "{used} of {rows} rows are used for training.")

PREVIOUS_JOB = Reason(
    "PreviousJob", (c.PODS_READY,),
    "A deleted job of the same name, or a deleted run of this one, has left {left}. The next run waits, because two "
    "runs must not write to one output.",
    "They disappear when their pods have ended; delete them if their owner was deleted with --cascade=orphan.",
)  # fmt: skip
CREATING = Reason("Creating", (c.PODS_READY,), "Run {run} is being created.")
CREATE_REFUSED = Reason(
    "CreateRefused", (c.PODS_READY,), "{message}",
    "The operator tries again automatically; ask an administrator, or change the job so that it is allowed.",
)  # fmt: skip
NAME_TAKEN = Reason(
    "NameTaken", (c.PODS_READY,), "{message}",
    "Delete it, or rename the job; the operator tries again automatically.",
)  # fmt: skip
BACKEND_MISSING = Reason(
    "BackendMissing", (c.PODS_READY,), "This cluster has no {kind} resource.",
    "{install}; the job then starts automatically.",
)  # fmt: skip
QUEUED = Reason(
    "Queued", (c.PODS_READY, c.TRAINING), "The queue has not admitted the job; it starts when quota is free."
)
BACKEND_SILENT = Reason(
    "BackendSilent", (c.PODS_READY,), "The {controller} has not reconciled run {run} since {created}.",
    "Check its pods: {inspect}",
)  # fmt: skip
NEWER_CONTRACT = Reason(
    "NewerContract", (c.PODS_READY,),
    "A newer operator accepted the job, and this one cannot start the trainer that was chosen then.",
    "Upgrade the operator, or delete the job and apply it again: it then resumes if the trainer can read its output.",
)  # fmt: skip
QUEUE_UNMANAGED = Reason(
    "QueueUnmanaged", (c.PODS_READY, c.TRAINING),
    "The job waits for the queue {queue}, but Kueue does not know its {kind}: Kueue is not installed, or does not "
    "manage the {kind}s of this namespace.",
    "Have {kind} enabled in Kueue's integrations.frameworks; the job then starts automatically. To run without a "
    "queue, delete the job and create it again without spec.queue.",
)  # fmt: skip
RUNNING = Reason("Running", (c.PODS_READY,), "{ready} of {wanted} pods are running.")
WAITING = Reason("Waiting", (c.PODS_READY,), "{ready} of {wanted} pods are running.")
POD_OVERDUE = Reason(
    "PodOverdue", (c.PODS_READY,),
    "Pod {pod} is past its termination grace period, but its node {node} has not confirmed that it stopped. The job "
    "waits, because two runs must not write to one output.",
    "{forced}If the node is off or permanently gone, run `kubectl delete pod {pod} --force -n {namespace}`.",
)  # fmt: skip
NO_PODS = Reason("", (c.PODS_READY,), "No pods are needed.")
"""Its name is the reason for which the run ended."""

STARTING = Reason("Starting", (c.TRAINING,), "Training has not started yet.")
STEPPING = Reason("Stepping", (c.TRAINING,), "Optimizer steps are running.")
RESTARTING = Reason("Restarting", (c.PODS_READY, c.TRAINING), "{message}", "{remedy}")
FREE_RESTART = "The next run starts automatically and costs none of lifecycle.maxRestarts."
"""What there is to do after pods were lost."""
NEXT_RUN = Reason(
    "", (c.PODS_READY,),
    "Run {run} starts at {time} (attempt {attempts} after {reason}; {used} of {allowed} restarts used).",
    "Suspend and resume the job to start it at once.",
)  # fmt: skip
"""Likewise, while the next run waits."""
NOT_TRAINING = Reason("", (c.TRAINING,), "Training is not running.")
"""Likewise."""

SUSPENDED = Reason(
    "Suspended", (c.SUSPENDED, c.PODS_READY, c.TRAINING), "spec.suspend is true.",
    "Set it to false to resume from the last checkpoint.",
)  # fmt: skip
RESUMED = Reason("Resumed", (c.SUSPENDED,), "The job resumes from its last checkpoint.")
STOPPING = Reason("Stopping", (c.PODS_READY,), "These have not ended yet: {left}. {until}")
CANCELLED = Reason("Cancelled", (c.FAILURE_TARGET, c.FAILED, c.READY), "spec.cancel is true.")
DEADLINE_EXCEEDED = Reason(
    "DeadlineExceeded", (c.FAILURE_TARGET, c.FAILED, c.READY),
    "Pods of the job were on nodes for longer than the deadline of {limit} s.",
    "Set a longer lifecycle.activeDeadlineSeconds, or shorten the training.",
)  # fmt: skip

_RETRY = "The pods are created again with increasing delays; suspend and resume the job to retry at once."
QUOTA_EXCEEDED = Reason(
    "QuotaExceeded", (c.PODS_READY,), "{message}",
    f"Wait for other pods to end, request less, or have the ResourceQuota raised. {_RETRY}",
)  # fmt: skip
QUOTA_NEEDS_LIMITS = Reason(
    "QuotaNeedsLimits", (c.PODS_READY,), "{message}",
    f"Set pods.cpu and pods.memory, or give the namespace a LimitRange with defaults. {_RETRY}",
)  # fmt: skip
POD_SECURITY = Reason(
    "PodSecurity", (c.PODS_READY,), "{message}",
    f"Remove the pods.* and network keys that the Pod Security level forbids, or use a namespace that allows them. "
    f"{_RETRY}",
)  # fmt: skip
LIMIT_RANGE = Reason(
    "LimitRange", (c.PODS_READY,), "{message}",
    f"Set pods.cpu, pods.memory and pods.sharedMemory within the namespace's LimitRange. {_RETRY}",
)  # fmt: skip
NO_PRIORITY_CLASS = Reason(
    "NoPriorityClass", (c.PODS_READY,), "{message}",
    f"Create the PriorityClass, or change pods.priorityClassName. {_RETRY}",
)  # fmt: skip
NO_SERVICE_ACCOUNT = Reason(
    "NoServiceAccount", (c.PODS_READY,), "{message}",
    f"Create the ServiceAccount, or change pods.serviceAccountName. {_RETRY}",
)  # fmt: skip
POD_NAME_TAKEN = Reason(
    "PodNameTaken", (c.PODS_READY,), "{message}",
    f"It is not this job's: delete it, or rename the job. {_RETRY}",
)  # fmt: skip
PODS_REFUSED = Reason(
    "PodsRefused", (c.PODS_READY,), "{message}",
    f"Ask the administrator of this cluster's admission rules. {_RETRY}",
)  # fmt: skip
CLAIM_MISSING = Reason(
    "ClaimMissing", (c.PODS_READY,), "{message}",
    "Create the PersistentVolumeClaim; the pod then starts automatically.",
)  # fmt: skip
CLAIM_UNBOUND = Reason(
    "ClaimUnbound", (c.PODS_READY,), "{message}",
    "Wait for the volume, or read the claim's events: its StorageClass may be missing or out of space.",
)  # fmt: skip
UNSCHEDULABLE = Reason(
    "Unschedulable", (c.PODS_READY,), "{message}",
    "Free or add nodes that fit, request less, or tolerate the listed taints (pods.tolerations).",
)  # fmt: skip
IMAGE_PULL = Reason(
    "ImagePull", (c.PODS_READY,), "{message}",
    "Check pods.image, and pods.imagePullSecrets if the registry requires a login.",
)  # fmt: skip
CONTAINER_CONFIG = Reason(
    "ContainerConfig", (c.PODS_READY,), "{message}", "Create the Secret or ConfigMap that the message names."
)

REASONS: tuple[Reason, ...] = tuple(r for r in list(globals().values()) if isinstance(r, Reason) and r.name)
"""All of them, in the order above."""
