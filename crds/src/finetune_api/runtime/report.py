"""What the trainer reports: progress records while it runs, one final report when it ends.

Rank 0 prints each record as one line of JSON on standard output. A line of a log is a record if and only if
it is a JSON object whose "record" names one of the kinds below. Numbers that are not finite are written as
null: JSON has no NaN.
"""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]


class _Record(BaseModel):
    # ignore: an older reader survives a newer writer. defer_build: `finetune validate` never reads a record.
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    def line(self) -> str:
        """The record as one line of JSON, without the line end."""
        return self.model_dump_json()


class DatasetRecord(_Record):
    """Rows after reading, and tokens after templates and masks. Sent once, before training."""

    record: Literal["dataset"] = "dataset"
    split: Literal["train", "validation"]
    rows: int
    used: int
    refused: int
    truncated: int
    tokens: int
    target_tokens: int


class ProgressRecord(_Record):
    """One optimizer step, or several since the last record."""

    record: Literal["progress"] = "progress"
    time: float
    """Unix time in seconds."""
    step: int
    total_steps: int
    epoch: float
    loss: Number
    """Mean negative log likelihood per target token of this step, in nats."""
    learning_rate: float
    grad_norm: Number
    """Global L2 norm before clipping."""
    tokens_per_second: Number
    """Tokens that are not padding, prompt included, over all ranks."""
    eta_seconds: Number
    loss_scale: Annotated[Number, Field(exclude_if=lambda scale: scale is None)] = None
    """With fp16: what the loss of this step was multiplied by for its backward pass."""
    skipped_steps: Annotated[int, Field(exclude_if=lambda steps: steps == 0)] = 0
    """Steps so far whose gradients overflowed with their loss scale, so that they changed nothing."""


class EvaluationRecord(_Record):
    record: Literal["evaluation"] = "evaluation"
    time: float
    step: int
    loss: Number
    """Mean negative log likelihood per target token of the validation rows."""
    rows: int
    best: bool


class CheckpointRecord(_Record):
    record: Literal["checkpoint"] = "checkpoint"
    time: float
    step: int
    seconds: float
    """From the step to the valid checkpoint."""
    blocked_seconds: float = 0.0
    """Those of them in which training stood still."""


class ResumeRecord(_Record):
    record: Literal["resume"] = "resume"
    time: float
    step: int


class Cause(BaseModel):
    """The failure that came first."""

    model_config = ConfigDict(frozen=True, defer_build=True)
    rank: int
    node: int
    time: float
    error: str


class FinalReport(_Record):
    """How the run ended. Written to the output as report.json and, cut to 4 KiB, to FINETUNE_REPORT."""

    record: Literal["report"] = "report"
    time: float
    exit_code: int
    reason: str
    """CamelCase, from exits.MEANINGS."""
    message: str
    step: int
    digest: str = ""
    result: str = ""
    """Folder of the adapter or the model; empty if there is none."""
    metrics: dict[str, Number] = Field(default_factory=dict)
    """train.loss, val.loss (of the result), val.loss.initial."""
    best_step: int | None = None
    cause: Cause | None = None


Record = Annotated[
    DatasetRecord | ProgressRecord | EvaluationRecord | CheckpointRecord | ResumeRecord | FinalReport,
    Field(discriminator="record"),
]
_ADAPTER: TypeAdapter[Record] = TypeAdapter(Record, config=ConfigDict(defer_build=True))


def parse(line: str) -> Record | None:
    """The record in a line of a log, or None if the line is anything else."""
    if not line.startswith('{"record":'):
        return None
    try:
        return _ADAPTER.validate_json(line)
    except ValidationError:
        return None
