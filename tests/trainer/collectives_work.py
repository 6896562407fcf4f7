"""What ranks do in the tests of collectives and of durable files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from finetune_trainer.collectives import on_every_rank, on_rank_0, rank
from finetune_trainer.errors import DataRefused, OutputRefused
from finetune_trainer.files import write_durable
from trainer.failpoints import Failing, die


def squares() -> list[int]:
    return on_every_rank(lambda: rank() ** 2)


def who_is_first() -> int:
    return on_rank_0(rank)


def refuse_on(victims: tuple[int, ...]) -> None:
    on_every_rank(lambda: _refuse(victims))


def first_refuses() -> None:
    on_rank_0(lambda: _refuse((0,)))


def _refuse(victims: tuple[int, ...]) -> None:
    if rank() in victims:
        error = OutputRefused if rank() == 1 else DataRefused
        raise error(f"failed on {rank()}")


def overwrite_dying(folder: Path) -> list[bytes]:
    """Overwrite a file, killed before each operation in turn; what it holds then."""
    counting = Failing()
    write_durable(folder / "counted", b"new", counting)
    found = []
    for at in range(1, len(counting.log) + 1):
        path = folder / str(at)
        path.write_bytes(b"old")
        die(partial(write_durable, path, b"new", Failing(at)))
        found.append(path.read_bytes())
    return found
