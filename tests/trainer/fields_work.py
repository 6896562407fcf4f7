"""A complete run in one process that records which module of the product reads which field of its configuration."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from pydantic import BaseModel

from finetune_api.runtime import run_config
from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import config, launch, preparation, worker
from finetune_trainer.handoff import Handoff
from finetune_trainer.stop import Stop
from trainer.trainer_work import ALONE

Part = TypeVar("Part", bound=BaseModel)
Readers = dict[str, set[str]]
"""Modules by dotted path of the field."""
NO_WORK = (sys.executable, "-c", "")


def readers(settings: RunConfig, folder: Path) -> Readers:
    """All that the launcher and the only rank do for a run, from the check of its configuration to its report."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    found: Readers = defaultdict(set)
    recorded = recording(settings, found)
    config.check(recorded)
    node = config.node({}, recorded)
    preparation.prepare(recorded, node.rank, folder, lambda _: None)
    launch.launch(recorded.mesh, node, folder, worker=NO_WORK)
    handoff = Handoff.read(folder).model_copy(update={"config": recorded})
    with Stop() as stop:
        assert worker.run(handoff, ALONE, folder, stop) == 0
    return dict(found)


def recording(part: Part, found: Readers, prefix: str = "") -> Part:
    """The same values; reading one notes the reader. Serialisation is not noted: it uses no value."""

    class Recorded(type(part)):  # type: ignore[misc]  # the class is known at run time only
        def __getattribute__(self, name: str) -> Any:
            if name in type(part).model_fields:
                found[prefix + name].add(_reader(sys._getframe(1)))
            return super().__getattribute__(name)

    inner = {
        name: recording(value, found, f"{prefix}{name}.") if isinstance(value, BaseModel) else value
        for name, value in part
    }
    recorded: Part = Recorded.model_construct(**inner)
    return recorded


def _reader(frame: FrameType) -> str:
    """The module that reads, also where it does so through a property of the configuration."""
    while frame.f_globals["__name__"] in (run_config.__name__, __name__) and frame.f_back:
        frame = frame.f_back
    return str(frame.f_globals["__name__"])
