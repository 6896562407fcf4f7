"""What the operator reports about a job. Only the operator writes it; people and Argo CD read it."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(max_length=1024)]
Long = Annotated[str, Field(max_length=32768)]
Time = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
Int = Annotated[int, Field(ge=-(2**53), le=2**53)]
Texts = Annotated[tuple[Text, ...], Field(max_length=64)]
MOST_INFORMATIONAL = 128


class Phase(StrEnum):
    """A one-word summary for people. Programs read conditions."""

    QUEUED = "Queued"
    PREPARING = "Preparing"
    STARTING = "Starting"
    TRAINING = "Training"
    STOPPING = "Stopping"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SUSPENDED = "Suspended"
    CANCELLED = "Cancelled"


class ConditionStatus(StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Part(BaseModel):
    """Base of the status' parts. A key that is absent is not known yet; one of another version is kept as it is."""

    model_config = ConfigDict(
        frozen=True, extra="allow", defer_build=True, protected_namespaces=(), allow_inf_nan=False
    )


def key(description: str) -> Any:
    return Field(default=None, description=description)


class Condition(Part):
    """One observation, in the shape of metav1.Condition."""

    type: Annotated[str, Field(max_length=64)] = Field(description="What is observed, in CamelCase.")
    status: ConditionStatus = Field(description="True, False or Unknown.")
    reason: Annotated[str, Field(max_length=128)] = Field(description="Why, in one CamelCase word.")
    message: Long = Field(description="Why, in sentences, with the remedy.")
    lastTransitionTime: Time = Field(description="When the status last changed.")  # noqa: N815
    observedGeneration: Int | None = key("Generation of the job that this is about.")  # noqa: N815


class Resolved(Part):
    """What was decided when the job was accepted. It serves every later run."""

    image: Text | None = key("Trainer image.")
    method: Text | None = key("fft, lora or qlora.")
    methodReason: Text | None = key("Which key decided the method.")  # noqa: N815
    engine: Text | None = key("single, ddp, fsdp2, hsdp or a ZeRO stage.")
    precision: Text | None = key("Number format of the computation.")
    rowsPerStep: Int | None = key("Rows of one optimizer step over all ranks.")  # noqa: N815
    network: Text | None = key("Network profile.")
    digest: Text | None = key("Digest of the run configuration.")
    runConfig: Long | None = key("The run configuration, as every run gets it.")  # noqa: N815
    contract: Long | None = key("Command, environment and paths of the trainer, as every run gets them.")
    activeDeadlineSeconds: Int | None = key(  # noqa: N815
        "The operator's default at acceptance; lifecycle.activeDeadlineSeconds overrides it."
    )
    ttlSecondsAfterFinished: Int | None = key(  # noqa: N815
        "The operator's default at acceptance; lifecycle.ttlSecondsAfterFinished overrides it."
    )


class LayoutStatus(Part):
    """How ranks are laid out: nodes x gpusPerNode = worldSize = data x tensor x pipeline parallel."""

    nodes: Int | None = key("Pods.")
    gpusPerNode: Int | None = key("Ranks of one pod.")  # noqa: N815
    worldSize: Int | None = key("Total number of ranks.")  # noqa: N815
    dataParallel: Int | None = key("Replicas of the model, or shards of its state.")  # noqa: N815
    tensorParallel: Int | None = key("Ranks that share a layer.")  # noqa: N815
    pipelineParallel: Int | None = key("Stages.")  # noqa: N815
    reasons: Texts | None = key("Which keys decided, and what was assumed.")


class NetworkStatus(Part):
    profile: Text | None = key("Network profile in use.")
    reason: Text | None = key("Why this one.")


class DatasetStatus(Part):
    rows: Int | None = key("Rows read.")
    used: Int | None = key("Rows trained on.")
    refused: Int | None = key("Rows that cannot be trained on.")
    tokens: Int | None = key("Tokens of the rows trained on.")
    maskedFraction: float | None = key("Share of tokens that carry no loss.")  # noqa: N815


class ProgressStatus(Part):
    """From rank 0's last progress record."""

    step: Int | None = key("Optimizer steps done.")
    totalSteps: Int | None = key("Total number of optimizer steps.")  # noqa: N815
    epoch: float | None = key("Passes over the rows done.")
    percent: Int | None = key("step of totalSteps.")
    loss: float | None = key("Mean loss per target token of the last step, in nats.")
    evalLoss: float | None = key("Mean loss per target token of the validation rows.")  # noqa: N815
    learningRate: float | None = key("Learning rate of the last step.")  # noqa: N815
    gradNorm: float | None = key("Gradient norm of the last step, before clipping.")  # noqa: N815
    tokensPerSecond: float | None = key("Tokens over all ranks.")  # noqa: N815
    etaSeconds: Int | None = key("Estimated seconds to the end.")  # noqa: N815
    checkpointStep: Int | None = key("Step of the newest checkpoint.")  # noqa: N815


class RetryStatus(Part):
    """The last restart after a failure, and the next run if it has to wait. status.restarts is what was used."""

    run: Int | None = key("The run that ended.")
    reason: Text | None = key("Why it ended.")
    message: Long | None = key("The same in sentences.")
    attempts: Int | None = key("Runs in a row that ended for this reason without a new checkpoint.")
    freeRestarts: Int | None = key("Restarts that cost nothing since the last new checkpoint.")  # noqa: N815
    allowed: Int | None = key("lifecycle.maxRestarts at that time.")
    checkpointStep: Int | None = key("Newest checkpoint at that time; a newer one is progress.")  # noqa: N815
    nextTime: Time | None = key("When the next run starts; absent if nothing has to wait.")  # noqa: N815


class AvoidedNode(Part):
    """A node that the job's pods are kept off."""

    name: Text | None = key("Name of the node.")
    reason: Text | None = key("What happened to a pod on it.")
    run: Int | None = key("In which run.")


class ActiveStatus(Part):
    """How long pods of the job were bound to nodes: this is what a deadline limits."""

    seconds: Int | None = key("Seconds in which at least one pod was bound to a node, without those since `since`.")
    since: Time | None = key("Since when a pod is bound, as far as `seconds` does not hold it; absent while none is.")


class ResultStatus(Part):
    uri: Text | None = key("Where the result is.")
    digest: Text | None = key("Digest of the run that made it.")
    metrics: Annotated[dict[str, float], Field(max_length=64)] | None = key("Final metrics.")
    best: Int | None = key("Step whose weights the result holds.")


class Status(Part):
    """Status of a FinetuneJob."""

    observedGeneration: Int | None = key("Generation that this status is about.")  # noqa: N815
    phase: Phase | None = key("One-word summary.")
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16)] | None = Field(
        default=None,
        description="Ready, Accepted, DataReady, PodsReady, Training, Suspended, Complete, FailureTarget, Failed.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    run: Int | None = key("Number of the current run: one attempt, with pods of its own.")
    podsDigest: Text | None = key(  # noqa: N815
        "Digest of the UIDs of the run's pods once all of them ran; another one means that pods were replaced."
    )
    restarts: Int | None = key("Runs that failed and were replaced; these count against lifecycle.maxRestarts.")
    retry: RetryStatus | None = key("The last restart after a failure, and when the next run starts.")
    avoidedNodes: Annotated[tuple[AvoidedNode, ...], Field(max_length=8)] | None = key(  # noqa: N815
        "Nodes on which a GPU failed or a kubelet could not give a pod its devices: the next runs avoid them, "
        "unless they fit nowhere else."
    )
    active: ActiveStatus | None = key("How long pods of the job were bound to nodes.")
    resolved: Resolved | None = key("What was decided when the job was accepted.")
    layout: LayoutStatus | None = key("How ranks are laid out.")
    network: NetworkStatus | None = key("How ranks reach each other.")
    dataset: DatasetStatus | None = key("What the rows are like.")
    progress: ProgressStatus | None = key("How far training is.")
    result: ResultStatus | None = key("What came out.")
    informational: Annotated[tuple[Text, ...], Field(max_length=MOST_INFORMATIONAL)] | None = key(
        "Keys that were accepted and change nothing."
    )
    startTime: Time | None = key("When the first run started.")  # noqa: N815
    completionTime: Time | None = key("When the job was over; unless it succeeded, all its pods had ended.")  # noqa: N815


def condition(kind: str, status: bool | None, reason: str, message: str, now: str) -> Condition:
    """A condition as of `now` (RFC 3339). status: None means Unknown."""
    value = {True: ConditionStatus.TRUE, False: ConditionStatus.FALSE, None: ConditionStatus.UNKNOWN}[status]
    return Condition(type=kind, status=value, reason=reason, message=message, lastTransitionTime=now)


def set_condition(conditions: tuple[Condition, ...], new: Condition) -> tuple[Condition, ...]:
    """The conditions with one of them set. Its transition time moves only when its status changes."""
    old = next((c for c in conditions if c.type == new.type), None)
    if old is None:
        return (*conditions, new)
    if old.status is new.status:
        new = new.model_copy(update={"lastTransitionTime": old.lastTransitionTime})
    return tuple(new if c.type == new.type else c for c in conditions)
