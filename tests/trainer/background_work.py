"""Runs whose saves are held back, or fail, while training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from finetune_api.runtime.report import FinalReport
from finetune_api.runtime.run_config import RunConfig
from finetune_trainer.collectives import rank
from finetune_trainer.errors import StorageFailed
from finetune_trainer.files import DISK, Files, Sink
from finetune_trainer.stop import Stop
from trainer import trainer_work
from trainer.failpoints import Failing, Full

LIMIT_S = 120.0


class Held:
    """`Files` that flush the shards of a step only when `may_go_on` says so."""

    folder = staticmethod(DISK.folder)
    rename = staticmethod(DISK.rename)
    remove = staticmethod(DISK.remove)

    def __init__(self, step: int, may_go_on: Callable[[], bool]) -> None:
        self._folder, self._may_go_on = f".tmp-step-{step:08d}", may_go_on

    def create(self, path: Path) -> AbstractContextManager[Sink]:
        return DISK.create(path)

    def fsync(self, path: Path) -> None:
        if path.parent.name == self._folder and path.suffix == ".bin":
            end = time.monotonic() + LIMIT_S
            while not self._may_go_on():
                assert time.monotonic() < end, "the run waits for the save, and the save for the run"
                time.sleep(0.01)
        DISK.fsync(path)


def run_held(config: RunConfig, step: int, until: int) -> FinalReport:
    """The save of `step` ends only after training has reached step `until`."""
    trainer = trainer_work.trainer(config, Stop())
    trainer.files = Held(step, lambda: trainer.step >= until)
    return trainer.run()


def run_failing_while_saving(config: RunConfig, step: int, until: int) -> FinalReport:
    """Step `until` fails, while the save of `step` is held back until then."""
    trainer = trainer_work.trainer(config, Stop())

    def fail() -> bool:
        if trainer.step >= until:
            raise RuntimeError("out of memory")
        return False

    trainer.stop.requested = fail  # type: ignore[method-assign]
    trainer.files = Held(step, lambda: trainer.step >= until)
    return trainer.run()


def run_stopped_while_saving(config: RunConfig, step: int, until: int) -> FinalReport:
    """Asked to stop after step `until`, while the save of `step` is held back until the run waits for it."""
    stop = StopAfter()
    trainer = trainer_work.trainer(config, stop)
    stop.when = lambda: trainer.step >= until
    trainer.files = Held(step, lambda: stop.seen)
    return trainer.run()


class StopAfter(Stop):
    def __init__(self) -> None:
        super().__init__()
        self.when: Callable[[], bool] = lambda: False
        self.seen = False

    def requested(self) -> bool:
        self.seen = self.when()
        return self.seen


def run_logged(config: RunConfig) -> list[str]:
    """The folders of the checkpoints that a run writes files in, in the order of the writes."""
    trainer = trainer_work.trainer(config, Stop())
    files = Failing()
    trainer.files = files
    trainer.run()
    return [path.parent.name for kind, path in files.log if kind == "create" and path.parent.name.startswith(".tmp")]


def run_full(config: RunConfig, victim: int) -> FinalReport:
    """The volume is full for the shards of one rank."""
    trainer = trainer_work.trainer(config, Stop())
    files: Files = Full("shard-*") if rank() == victim else DISK
    trainer.files = files
    return trainer.run()


def stops_after_a_failed_save(config: RunConfig) -> bool:
    """Whether training is asked to stop once a save has failed, and only then. Raises what the save has raised."""
    trainer = trainer_work.trainer(config, Stop())
    before = trainer._should_stop()
    trainer._saving.begin(1, _no_space, 0.0)
    end = time.monotonic() + LIMIT_S
    while not trainer._should_stop():
        assert time.monotonic() < end, "nothing asks training to stop"
        time.sleep(0.01)
    assert not before
    trainer._saving.wait()
    return True


def _no_space() -> None:
    raise StorageFailed("no space left")
