"""Supervises replicas until all have ended: which are stopped, which are killed, and when.

One thread handles all events, in the order in which they arrive.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from queue import Empty
from time import monotonic
from types import FrameType

from finetune_api.runtime.exits import Exit

from .launches import Launch
from .processes import Ended, Event, Events, OutputLine, Replica, SignalReceived

GRACE_SECONDS = 20.0
"""Time that replicas have to write their reports after another one failed. Without that peer they cannot save."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class SupervisedRun:
    """The replicas of a run, and what has happened to them."""

    replicas: list[Replica] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    """In the order of ending."""
    signals: int = 0
    """Number of signals that this process has received."""
    grace: float = GRACE_SECONDS
    deadline: float | None = None

    @property
    def running(self) -> list[Replica]:
        ended = {each.launch.node for each in self.ended}
        return [replica for replica in self.replicas if replica.launch.node not in ended]


def supervise(
    run: SupervisedRun, events: Events, on_line: Callable[[OutputLine], None], on_signal: Callable[[int], None]
) -> None:  # fmt: skip
    """Return when every replica has ended. `on_signal` is called with the number of signals so far: 1, 2, ..."""
    while run.running:
        event = _next(events, run.deadline)
        if isinstance(event, OutputLine):
            on_line(event)
        elif isinstance(event, Ended):
            run.ended.append(event)
            if event.code not in (Exit.OK, Exit.STOPPED) and run.deadline is None:
                run.deadline = monotonic() + run.grace
                _stop(run)
        elif isinstance(event, SignalReceived):
            run.signals += 1
            on_signal(run.signals)
            (_stop if run.signals == 1 else _kill)(run)
        else:
            _kill(run)


@contextmanager
def started(
    launches: Sequence[Launch], events: Events, grace: float = GRACE_SECONDS, inherited: Sequence[int] = ()
) -> Iterator[SupervisedRun]:
    """The launches as a run. Every process of it has ended when the context exits, for whatever reason.

    `inherited` are descriptors that the replicas keep open, also when this process is killed.
    """
    run = SupervisedRun(grace=grace)
    try:
        for launch in launches:
            run.replicas.append(Replica(launch, events, inherited))
        yield run
    finally:
        for replica in run.replicas:
            replica.end()


@contextmanager
def handled_signals(
    numbers: Iterable[signal.Signals], handle: Callable[[int, FrameType | None], None]
) -> Iterator[None]:  # fmt: skip
    """Handle signals while the context lasts; restore the previous handlers at exit.

    SIGHUP stays ignored where it is: nohup asks for that.
    """
    wanted = [n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def signals_as_events(events: Events) -> AbstractContextManager[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into events while the context lasts."""
    return handled_signals(SIGNALS, lambda number, _: events.put(SignalReceived(signal.Signals(number))))


def _next(events: Events, deadline: float | None) -> Event | None:
    """The next event, or None when the deadline has passed."""
    try:
        return events.get(timeout=None if deadline is None else max(0.0, deadline - monotonic()))
    except Empty:
        return None


def _stop(run: SupervisedRun) -> None:
    for replica in run.running:
        replica.stop()


def _kill(run: SupervisedRun) -> None:
    for replica in run.running:
        replica.kill()
    run.deadline = None
