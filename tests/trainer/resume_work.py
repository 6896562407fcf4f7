"""A complete run in a process that is killed at a chosen operation of its saves, and the run that resumes it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from finetune_api.runtime.choices import Device
from finetune_api.runtime.report import FinalReport, ResumeRecord, parse
from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import checkpoint, environment, preparation
from finetune_trainer.files import DISK, Files
from finetune_trainer.handoff import STORE_ENV, Handoff
from finetune_trainer.stop import Stop
from finetune_trainer.trainer import Trainer
from trainer.failpoints import Failing, die


def run_uninterrupted(config: RunConfig, folder: Path) -> None:
    """Run `config` to its end, on as many ranks as it asks for, each a fork of this process."""
    prepare(config, folder)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        rendezvous = {
            "WORLD_SIZE": str(config.mesh.world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(listening.getsockname()[1]),
        }
        children = [
            fork(partial(run_rank, config, folder, own | rendezvous, DISK))
            for own in (_own(rank, listening.fileno()) for rank in range(config.mesh.world_size))
        ]
        for child in children:
            wait(child)


def die_at_many_points(config: RunConfig, folder: Path, stride: int) -> list[int | None]:
    """Run `config` in outputs of its own, killed at every `stride`-th operation of its saves and its result,
    and continue each. Returns the steps they continued from (None: from the start).

    Checks that each ends with the weights of the uninterrupted run.
    """
    prepare(config, folder)
    wait(fork(partial(count_operations, config, folder)))
    operations = int((folder / "operations").read_text())
    return [continued(config, folder, at) for at in range(1, operations + 1, stride)]


def continued(config: RunConfig, folder: Path, at: int) -> int | None:
    output = folder / f"killed-{at}"
    settings = config.model_copy(update={"output": str(output)})
    die(partial(run_rank, settings, folder, _own(0), Failing(at)))
    newest = checkpoint.latest(output)
    finished = (output / "result" / "COMPLETE").exists()
    wait(fork(partial(run_rank, settings, folder, _own(0), DISK)))
    assert weights(output) == weights(Path(config.output)), f"killed at operation {at}"
    assert resumed_from(output) == (None if finished else newest)
    return newest


def count_operations(config: RunConfig, folder: Path) -> None:
    files = Failing()
    run_rank(config, folder, _own(0), files)
    (folder / "operations").write_text(str(len(files.log)))


def prepare(config: RunConfig, folder: Path) -> None:
    (folder / "handoff").mkdir()
    preparation.prepare(config, 0, folder / "handoff", lambda _: None)


def run_rank(config: RunConfig, folder: Path, variables: dict[str, str], files: Files) -> None:
    """One rank of the run, as worker.py has it."""
    torch.set_num_threads(1)
    handoff = Handoff.read(folder / "handoff").model_copy(update={"config": config})
    with environment.process_group(variables, Device.CPU) as rank_info, Stop() as stop:
        report = Trainer(handoff, folder / "handoff", rank_info, stop, files).run()
    assert report.exit_code == 0


def _own(rank: int, store: int | None = None) -> dict[str, str]:
    """Variables of one rank; by default those of a single rank."""
    own = {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }  # fmt: skip
    return own if store is None or rank > 0 else own | {STORE_ENV: str(store)}


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a fork: process groups and random states of one run do not reach the next."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def wait(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def weights(output: Path) -> bytes:
    return (output / "result" / "adapter_model.safetensors").read_bytes()


def resumed_from(output: Path) -> int | None:
    steps = [r.step for r in records(output) if isinstance(r, ResumeRecord)]
    return steps[-1] if steps else None


def records(output: Path) -> list[object]:
    return [parse(line) for line in (output / "records.jsonl").read_text().splitlines()]


def report(output: Path) -> FinalReport:
    return FinalReport.model_validate(json.loads((output / "report.json").read_bytes()))
