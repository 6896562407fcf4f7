"""From started replicas to their end: who is asked to stop, who is killed, and when.

One thread takes all events, in the order in which they came.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty
from time import monotonic
from types import FrameType

from finetune_api.runtime.exits import Exit

from .launches import Launch
from .processes import Asked, Ended, Event, Events, Line, Replica

GRACE_SECONDS = 20.0
"""How long replicas have after one of them failed. They lost a peer and cannot save: this is for their reports."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Run:
    """Replicas under way, and what has happened to them."""

    replicas: list[Replica] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    """In the order of ending."""
    asks: int = 0
    """Signals that this process got."""
    grace: float = GRACE_SECONDS
    deadline: float | None = None

    @property
    def running(self) -> list[Replica]:
        gone = {each.launch.node for each in self.ended}
        return [replica for replica in self.replicas if replica.launch.node not in gone]


def supervise(
    run: Run, events: Events, on_line: Callable[[Line], None], on_ask: Callable[[int], None]
) -> None:  # fmt: skip
    """Return when every replica has ended. `on_ask` hears the number of each signal: 1, 2, ..."""
    while run.running:
        event = _next(events, run.deadline)
        if isinstance(event, Line):
            on_line(event)
        elif isinstance(event, Ended):
            run.ended.append(event)
            if event.code not in (Exit.OK, Exit.STOPPED) and run.deadline is None:
                run.deadline = monotonic() + run.grace
                _stop(run)
        elif isinstance(event, Asked):
            run.asks += 1
            on_ask(run.asks)
            (_stop if run.asks == 1 else _kill)(run)
        else:
            _kill(run)


@contextmanager
def started(launches: Sequence[Launch], events: Events, grace: float = GRACE_SECONDS) -> Iterator[Run]:
    """The launches as a run. When the context ends, for whatever reason, so has every process of it."""
    run = Run(grace=grace)
    try:
        for launch in launches:
            run.replicas.append(Replica(launch, events))
        yield run
    finally:
        for replica in run.replicas:
            replica.end()


@contextmanager
def signals_as_events(events: Events) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP arrive as events; afterwards they do again what they did before."""

    def note(number: int, frame: FrameType | None) -> None:
        events.put(Asked(signal.Signals(number)))

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _next(events: Events, deadline: float | None) -> Event | None:
    """The next event, or None when the deadline has passed."""
    try:
        return events.get(timeout=None if deadline is None else max(0.0, deadline - monotonic()))
    except Empty:
        return None


def _stop(run: Run) -> None:
    for replica in run.running:
        replica.stop()


def _kill(run: Run) -> None:
    for replica in run.running:
        replica.kill()
    run.deadline = None
