"""FinetuneJob, finetune.dev/v1alpha1: the resource as Python sees it.

The CRD, the admission policy and the reference pages are generated from these models.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from . import native, sections
from .keys import Section, informational, key
from .names import NAME_LENGTH, NAME_PATTERN


class Spec(Section):
    """What to train, on what, and how."""

    algorithm: sections.Algorithm | None = key("What kind of training this is.")
    job: sections.Job | None = key("What is trained on what.")
    compute: sections.Compute | None = key("The machines.")
    data: sections.Data | None = key("The rows.")
    training: sections.Training | None = key("How training goes about its work.")
    hyperparameters: sections.Hyperparameters | None = key("Numbers of the optimization.")
    lora: sections.Adapter | None = key("As training.lora.")
    policy: sections.Policy | None = key("How other systems name and sample the model.")
    tags: sections.Free | None = informational("Words for people.", "they change nothing")
    metadata: sections.Free | None = informational("Words for people and machines.", "they change nothing")
    model: sections.ModelConfig | None = key("What the base model can do.", alias="model_config")

    suspend: bool | None = key("true: stop after a checkpoint and give the GPUs back; false: go on from there.")
    cancel: bool | None = key("true: end the job for good, after a checkpoint.")
    output: native.Output | None = key("Where the result goes.")
    pods: native.Pods | None = key("What the training pods look like.")
    network: native.Network | None = key("How ranks reach each other.")
    storage: native.Storage | None = key("Volumes besides data and output.")
    queue: native.Queue | None = key("Kueue.")
    lifecycle: native.Lifecycle | None = key("Ends and new beginnings.")
    credentials: native.Credentials | None = key("References to secrets.")


class Metadata(BaseModel):
    """The part of ObjectMeta that we read."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    name: Annotated[str, Field(min_length=1, max_length=NAME_LENGTH, pattern=NAME_PATTERN)]
    namespace: str | None = None
    uid: str | None = None
    generation: int | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class FinetuneJob(BaseModel):
    """Finetunes a language model on a GPU cluster."""

    # What a person writes. The operator's part, the status, is a document of its own: status.Status.
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    apiVersion: Literal["finetune.dev/v1alpha1"]  # noqa: N815
    kind: Literal["FinetuneJob"]
    metadata: Metadata
    spec: Spec
