"""Files that a node's launcher and its ranks exchange, in a temporary folder that is removed after the run.

From the launcher: handoff.json and the prepared rows. From each rank: its final report.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from finetune_api.runtime.report import DatasetRecord, FinalReport
from finetune_api.runtime.run_config import RunConfig

FOLDER_ENV = "FINETUNE_HANDOFF"
"""Environment variable of a rank with the path of the folder."""
STORE_ENV = "FINETUNE_STORE_FD"
"""Environment variable of rank 0: file descriptor of the listening socket for the store, on a single node."""
Split = Literal["train", "validation"]
TRAIN: Split = "train"
VALIDATION: Split = "validation"
"""Folders with the prepared rows."""
MODEL, DATA, ADAPTER = "model", "data", "adapter"
"""Names of the digests of the content of job.model, job.data and training.lora.from."""
CONTENT = "content."
"""Prefix of these names in the identity of a run (identity.py)."""


class Handoff(BaseModel):
    """What the launcher has resolved and every rank of the node needs."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())
    config: RunConfig
    node: int
    base_folder: Path
    """job.model."""
    model_folder: Path
    """The same, or, with data.added_tokens, what vocabulary.py has made of it."""
    data_file: Path
    datasets: tuple[DatasetRecord, ...]
    digests: dict[str, str]
    """Of what this node has read: the content of job.model, job.data and training.lora.from, and of the prepared rows
    of each split."""

    def write(self, folder: Path) -> None:
        (folder / "handoff.json").write_text(self.model_dump_json())

    @classmethod
    def read(cls, folder: Path) -> Handoff:
        return cls.model_validate_json((folder / "handoff.json").read_bytes())


def write_rank_report(folder: Path, rank: int, report: FinalReport) -> None:
    """Write `report` for the launcher, atomically: the rank may be killed at any moment."""
    path = folder / f"rank-{rank:05d}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(report.line())
    temporary.replace(path)


def read_rank_report(folder: Path, rank: int) -> FinalReport | None:
    """The report of `rank`, or None if it wrote none."""
    path = folder / f"rank-{rank:05d}.json"
    return FinalReport.model_validate_json(path.read_bytes()) if path.exists() else None


def write_digest(folder: Path, digest: str) -> None:
    """Tell the launcher that this run owns the output folder: from now on it may write reports there."""
    (folder / "digest").write_text(digest)


def read_digest(folder: Path) -> str:
    """The digest of the run; empty if no rank has claimed the output."""
    path = folder / "digest"
    return path.read_text() if path.exists() else ""
