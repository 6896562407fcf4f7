"""The tasks of the process, and what follows when one of them fails. Started by __main__.py."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TypeVar

from . import metrics

T = TypeVar("T")

log = logging.getLogger(__name__)

PAUSE_SECONDS = (1.0, 30.0)
"""Before a failed task starts again: first, and at most; doubled in between."""
STEADY_SECONDS = 60.0
"""A task that ran for so long begins with the first pause again."""


class Answer(StrEnum):
    """What follows a failure."""

    RESTART = "restart"
    """The task starts again after a pause, and the failure is counted."""
    EXIT = "exit"
    """The process ends with code 1 and a log line."""


TASKS = {
    "worker": Answer.RESTART,
    "log reader": Answer.RESTART,
    "event writer": Answer.RESTART,
    "resync": Answer.RESTART,
    "heartbeat": Answer.RESTART,
    "discovery": Answer.RESTART,
    "watches": Answer.RESTART,
    "health check": Answer.EXIT,
    "signals": Answer.EXIT,
    "server": Answer.EXIT,
}
"""Each task of the process, and the answer to its failure.

What serves jobs starts again, since an object of anybody may have caused the failure; if that does not help, watches
miss changes and the process exits with 3 (health.py). What could no longer notice that, take SIGTERM or answer probes
ends the process, and Kubernetes starts it again.
"""


async def supervise(
    name: str, run: Callable[[], Awaitable[T]], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:  # fmt: skip
    """Run a task of TASKS until it returns or is cancelled, whatever fails in it."""
    pause = PAUSE_SECONDS[0]
    while True:
        begun = clock()
        try:
            return await run()
        except (Exception, asyncio.CancelledError) as error:
            if _is_cancelled(error):
                raise
            metrics.TASK_FAILURES.labels(task=name).inc()
            if TASKS[name] is Answer.EXIT:
                log.exception("task failed, exiting", extra={"task": name})
                raise
            pause = PAUSE_SECONDS[0] if clock() - begun >= STEADY_SECONDS else pause
            log.exception("task failed, starting again", extra={"task": name, "seconds": pause})
        await sleep(pause)
        pause = min(PAUSE_SECONDS[1], 2 * pause)


def _is_cancelled(error: BaseException) -> bool:
    """Whether this task was cancelled, not only something that it waited for: kopf cancels what others started."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
