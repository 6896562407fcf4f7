"""Collective calls that fail on every rank with the same cause.

If one rank raised on its own, the others would wait in their next collective until it times out, and the timeout
names no cause. Used around everything on the storage (identity, checkpoint, result), where one rank can fail
and another succeed. Without a process group, every function here is a plain call.

What rank 0 does alone may take as long as its volume does, so the others ask the store of the process group for the
outcome, instead of waiting in a collective that times out. The launcher ends ranks that make no progress.
"""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch import Tensor

from .errors import RunError
from .files import storage_failure

T = TypeVar("T")
_SHORTEST_S, _LONGEST_S = 0.001, 0.1
"""Between two questions for the outcome of rank 0."""
_FAREWELL_S = 10.0
"""How long rank 0 lives on after an error, so that the others can ask for it."""
_ALONE = timedelta(days=7)
"""Time-out of a channel of its own: what is done there may take as long as its volume does."""


@dataclass(frozen=True)
class Channel:
    """Where collective calls meet. Threads with channels of their own do not meet each other's."""

    name: str
    group: Any = None
    """The process group; None: the default one."""
    calls: Iterator[int] = field(default_factory=itertools.count)
    """Every rank makes the same calls in the same order on a channel, so their numbers are the same."""


_MAIN = Channel("main")
_channels = itertools.count()
_channel: ContextVar[Channel | None] = ContextVar("_channel", default=None)


def new_channel(name: str) -> Channel:
    """A channel with a process group of its own on the CPU. Collective."""
    own = dist.new_group(backend="gloo", timeout=_ALONE) if _distributed() else None
    return Channel(f"{name}-{next(_channels)}", own)


@contextmanager
def on_channel(channel: Channel) -> Iterator[None]:
    """Collective calls of this thread use `channel`."""
    token = _channel.set(channel)
    try:
        yield
    finally:
        _channel.reset(token)


def group() -> Any:
    """The process group of the channel of this thread; None: the default one."""
    return _current().group


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
        dist.all_gather_object(outcomes, outcome, group=group())
    return _values(outcomes)


def gather(value: T) -> list[T]:
    """The values of all ranks, in order of ranks, on rank 0; on the others an empty list."""
    if not _distributed():
        return [value]
    values = cast("list[T]", [None] * world_size()) if rank() == 0 else None
    dist.gather_object(value, values, dst=0, group=group())
    return values or []


def broadcast(tensor: Tensor, source: int) -> Tensor:
    """`tensor` with the values that rank `source` has. It is on the CPU, and the channel has a group of its own."""
    if _distributed():
        dist.broadcast(tensor, src=source, group=group())
    return tensor


def on_rank_0(work: Callable[[], T]) -> T:
    """Run `work` on rank 0 only; every rank returns its result, or raises the RunError that it raised."""
    if not _distributed():
        return _values([_attempt(work)])[0]
    channel = _current()
    store, key = _store(), f"rank-0/{channel.name}/{next(channel.calls)}"
    if rank() == 0:
        store.set(key, pickle.dumps(_attempt(work)))
    _until(lambda: store.check([key]))
    outcome: T | RunError = pickle.loads(store.get(key))  # noqa: S301 - by rank 0 of this run
    if isinstance(outcome, RunError):
        store.add(f"{key}/raised", 1)
        if rank() == 0:  # its process has the store
            _until(lambda: store.add(f"{key}/raised", 0) == world_size(), _FAREWELL_S)
        raise outcome
    return outcome


def _current() -> Channel:
    return _channel.get() or _MAIN


def _until(condition: Callable[[], bool], limit_s: float = float("inf")) -> None:
    """Return when `condition` is true, or after `limit_s`. Raises if the process of the store has ended."""
    pause, end = _SHORTEST_S, time.monotonic() + limit_s
    while not condition() and time.monotonic() < end:
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_S)


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()  # noqa: SLF001 - nothing else names it


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
