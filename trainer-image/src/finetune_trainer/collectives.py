"""Collective calls that fail on every rank with the same cause.

If one rank raised on its own, the others would wait in their next collective until it times out, and the timeout
names no cause. Used around everything on the storage (identity, checkpoint, result), where one rank can fail
and another succeed. Without a process group, every function here is a plain call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch.distributed as dist

from .errors import RunError
from .files import storage_failure

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if _distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if _distributed() else 1


def on_every_rank(work: Callable[[], T]) -> list[T]:
    """Run `work` on every rank; return all results, in order of ranks.

    If it raises a RunError on some rank, every rank raises it (the lowest rank's, with that rank's number in
    the message). Other exceptions are bugs and are not sent to the other ranks.
    """
    outcome = _attempt(work)
    outcomes: list[T | RunError] = [outcome]
    if _distributed():
        outcomes = cast("list[T | RunError]", [None] * world_size())
        dist.all_gather_object(outcomes, outcome)
    return _values(outcomes)


def on_rank_0(work: Callable[[], T]) -> T:
    """Run `work` on rank 0 only; every rank returns its result, or raises the RunError that it raised."""
    box: list[T | RunError | None] = [_attempt(work) if rank() == 0 else None]
    if _distributed():
        dist.broadcast_object_list(box, src=0)
    outcome = box[0]
    if isinstance(outcome, RunError):
        raise outcome
    return cast("T", outcome)


def _attempt(work: Callable[[], T]) -> T | RunError:
    try:
        return work()
    except RunError as error:
        return storage_failure(error) or error  # what led to an error is not sent to other ranks


def _values(outcomes: list[T | RunError]) -> list[T]:
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, RunError):
            raise outcome if len(outcomes) == 1 else type(outcome)(f"rank {number}: {outcome}")
    return cast("list[T]", outcomes)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
