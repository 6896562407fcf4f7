"""What the program that merges an adapter prints: lines of JSON, of which the last is the outcome.

`finetune merge` starts it and reads them.
"""

from pydantic import BaseModel, ConfigDict


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class MergeProgress(_Line):
    """Bytes of the merged weights."""

    done: int
    total: int


class MergeOutcome(_Line):
    """How it ended."""

    exit_code: int
    """One of exits.Exit."""
    reason: str
    message: str
    adapter: str = ""
    """Folder of the adapter that was merged."""
    base: str = ""
    """Folder of the model that it was merged into."""
    layers: int = 0
    bytes: int = 0
    """Of the merged weights."""


def parse(line: str) -> MergeProgress | MergeOutcome:
    """Raises ValueError for any other line."""
    try:
        return MergeProgress.model_validate_json(line)
    except ValueError:
        return MergeOutcome.model_validate_json(line)
