"""What a node's launcher and its ranks tell each other, as files in a folder that lives as long as the run.

From the launcher: handoff.json and the prepared rows. From each rank: how it ended, as a final report.
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
"""Environment variable of rank 0 with the number of the open socket at which the ranks of a single node meet."""
Split = Literal["train", "validation"]
TRAIN: Split = "train"
VALIDATION: Split = "validation"
"""Folders with the prepared rows."""


class Handoff(BaseModel):
    """What the launcher has found out and every rank of the node needs."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())
    config: RunConfig
    node: int
    model_folder: Path
    data_file: Path
    datasets: tuple[DatasetRecord, ...]

    def write(self, folder: Path) -> None:
        (folder / "handoff.json").write_text(self.model_dump_json())

    @classmethod
    def read(cls, folder: Path) -> Handoff:
        return cls.model_validate_json((folder / "handoff.json").read_bytes())


def write_ending(folder: Path, rank: int, report: FinalReport) -> None:
    """Leave `report` for the launcher: whole or not at all, since a rank may be ended at any moment."""
    path = folder / f"rank-{rank:05d}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(report.line())
    temporary.replace(path)


def read_ending(folder: Path, rank: int) -> FinalReport | None:
    """How `rank` ended, or None if it did not live to say."""
    path = folder / f"rank-{rank:05d}.json"
    return FinalReport.model_validate_json(path.read_bytes()) if path.exists() else None


def write_digest(folder: Path, digest: str) -> None:
    """Tell the launcher that the output folder is this run's; from now on reports belong into it."""
    (folder / "digest").write_text(digest)


def read_digest(folder: Path) -> str:
    """The digest of the run, or nothing if no rank got as far as to claim the output."""
    path = folder / "digest"
    return path.read_text() if path.exists() else ""
