"""Process groups for tests: a function of a helper module, run by real ranks over gloo on this machine.

Processes come from a fork server that has imported torch already: a rank starts in milliseconds. The function
and its arguments are pickled, so the function stands in a module that a child can import.
"""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from finetune_trainer.errors import RunError

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([
    "finetune_trainer.checkpoint", "finetune_trainer.result", "torch.distributed.fsdp", "torch._dynamo",
    "transformers.models.llama.modeling_llama", "bitsandbytes",
])  # fmt: skip


@dataclass(frozen=True)
class RankResult:
    """How one rank ended: its exit code (negative: a signal), and what the function returned or raised."""

    code: int | None
    value: Any = None
    error: Exception | None = None


def run_ranks(world: int, work: Callable[..., Any], *args: Any) -> list[RankResult]:
    """Run `work(*args)` on `world` ranks at once; a world of 1 has no process group. Leaves no process behind.

    Only the time limit of the test ends ranks that hang.
    """
    over = _context.Event()
    with tempfile.TemporaryDirectory() as folder:
        pipes = [_context.Pipe(duplex=False) for _ in range(world)]
        children = [
            _context.Process(target=_rank, args=(rank, world, Path(folder), over, pipes[rank][1], work, args))
            for rank in range(world)
        ]
        try:
            for child in children:
                child.start()
            for _, sender in pipes:
                sender.close()
            received = [_receive(receiver) for receiver, _ in pipes]
            over.set()
            for child in children:
                child.join()
            return [RankResult(child.exitcode, *outcome) for child, outcome in zip(children, received, strict=True)]
        finally:
            for child in children:
                child.kill()
                child.join()
                child.close()


def values(ended: list[RankResult]) -> list[Any]:
    """What every rank returned; fails with the first rank's error if one raised."""
    for rank, one in enumerate(ended):
        assert one.error is None, f"rank {rank}: {one.error!r}"
        assert one.code == 0, f"rank {rank} ended with {one.code}"
    return [one.value for one in ended]


def _store(rank: int, world: int, port: Path) -> Any:
    """A store that ends with the process of rank 0, as that of a run does. `port` is how the others find it."""
    if rank > 0:
        while not port.exists():
            time.sleep(0.01)
        return dist.TCPStore("127.0.0.1", int(port.read_text()), world)  # type: ignore[attr-defined]
    store = dist.TCPStore("127.0.0.1", 0, world, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    port.with_suffix(".new").write_text(str(store.port))
    port.with_suffix(".new").rename(port)
    return store


def _receive(receiver: Connection) -> tuple[Any, Exception | None]:
    try:
        value, error = pickle.loads(receiver.recv_bytes())
    except EOFError:  # killed before it could answer
        return None, None
    finally:
        receiver.close()
    return value, error


def _rank(  # noqa: PLR0917 - all that a process is given
    rank: int, world: int, folder: Path, over: Event, sender: Connection, work: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:  # fmt: skip
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", store=_store(rank, world, folder / "port"), rank=rank, world_size=world)
    try:
        sender.send_bytes(pickle.dumps((work(*args), None)))
    except Exception as error:  # noqa: BLE001 - the test decides about every error
        traceback.print_exc()
        sent = error if isinstance(error, RunError) else RuntimeError(repr(error))  # others may not unpickle
        sender.send_bytes(pickle.dumps((None, sent)))
    finally:
        if world > 1:
            if rank == 0:
                over.wait()  # the others may still ask the store
            dist.destroy_process_group()
