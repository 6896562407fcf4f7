"""Events to be created, in the background: no pass waits for them. Best effort: too many, or a refusal, drop some."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from . import metrics
from .errors import ClusterError
from .identity import Json, Key, log_fields

log = logging.getLogger(__name__)

WRITERS = 4
"""Events that are created at once."""
MOST_WAITING = 4096
"""Events of a few KiB each."""


class EventQueue:
    """Waiting events. WRITERS tasks run write()."""

    def __init__(self, create: Callable[[Json], Awaitable[None]], most_waiting: int = MOST_WAITING) -> None:
        self._create, self._waiting = create, asyncio.Queue[Json](most_waiting)

    def put(self, event: Json) -> None:
        """Create an event soon, unless too many wait."""
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            self._dropped(event, "too many events wait")

    async def write(self) -> None:
        """Create one event after the other."""
        while True:
            event = await self._waiting.get()
            try:
                await self._create(event)
            except ClusterError as error:
                self._dropped(event, str(error))
            finally:
                self._waiting.task_done()

    async def drained(self) -> None:
        """Return once all events are created, or dropped."""
        await self._waiting.join()

    def _dropped(self, event: Json, error: str) -> None:
        metrics.DROPPED_EVENTS.inc()
        job = Key(event["involvedObject"]["namespace"], event["involvedObject"]["name"])
        log.warning("event not created", extra=log_fields(job) | {"error": error, "event": event["reason"]})
