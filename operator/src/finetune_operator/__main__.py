"""`python -m finetune_operator`: read the settings, run the loops, and exit on SIGTERM or when watches are dead.

Exit codes: 0 after SIGTERM; 1 after an error; 3 when a watch is dead (Kubernetes restarts the pod).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Collection, Coroutine
from contextlib import suppress
from typing import Any

import kopf
from kopf._cogs.clients.errors import APINotFoundError
from kopf._cogs.structs.references import Insights
from pydantic import ValidationError

from finetune_plan import backends
from finetune_plan.backends.protocol import Backend

from . import event_queue, handlers, logs, server
from .cluster import KubernetesCluster
from .discovery import WatchedKinds
from .runtime import Operator
from .settings import Settings

UNHEALTHY = 3
CHECK_SECONDS = 5.0
DRAIN_SECONDS = 15.0
"""Seconds that passes in progress, and then events that wait, may take after SIGTERM."""
KOPF_EXIT_SECONDS = 4.0
"""Seconds that kopf may take after that. It loses a cancellation that meets the end of a stream, and would wait for
that watch for ever."""
SHUTDOWN_SECONDS = 25.0
"""Seconds from SIGTERM to the end, even if something hangs: below the pod's own grace period of 30."""

GC_THRESHOLD = 50_000
"""Allocations between two garbage collections. A list of thousands of objects is mostly new containers that stay: at
Python's default of 700, collecting takes longer than parsing the list."""

log = logging.getLogger(__name__)


def main() -> int:
    try:
        settings = Settings()
    except ValidationError as error:
        print(f"finetune-operator: the settings are wrong: {error}", file=sys.stderr)  # noqa: T201
        return 2
    logs.configure(settings.log_level)
    gc.freeze()  # what the imports have made stays for good
    gc.set_threshold(GC_THRESHOLD)
    asyncio.run(run(settings, backends.DEFAULT))
    return 0


async def run(settings: Settings, backend: Backend) -> None:
    """Serve until SIGTERM."""
    cluster = KubernetesCluster(settings, backend)
    operator = Operator(cluster, settings, backend)
    web = await server.serve(operator)
    ready, terminate, leave = asyncio.Event(), asyncio.Event(), asyncio.Event()
    kinds = WatchedKinds(operator)
    # Before kopf starts: it cancels at its end every task that began after it.
    workers = _tasks(*(operator.work() for _ in range(settings.workers)))
    loops = _tasks(
        operator.resync(),
        operator.heartbeat(),
        _exit_when_unhealthy(operator),
        kinds.follow(),
        _take_signals(ready, terminate),
        terminate.wait(),
        *(operator.progress.read() for _ in range(settings.progress_readers)),
        *(operator.events.write() for _ in range(event_queue.WRITERS)),
    )
    watch = asyncio.create_task(_watch(operator, kinds, ready, leave))
    await asyncio.wait([*workers, *loops, watch], return_when=asyncio.FIRST_COMPLETED)
    _end_within(SHUTDOWN_SECONDS)
    operator.stop()
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            await asyncio.wait(workers)
            await operator.events.drained()
    leave.set()
    await asyncio.wait([watch], timeout=KOPF_EXIT_SECONDS)
    ended = await _cancelled([*workers, *loops, watch])
    await web.cleanup()
    await cluster.close()
    for error in ended:
        if isinstance(error, Exception):
            raise error


def _tasks(*loops: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(loop) for loop in loops]


async def _cancelled(tasks: Collection[asyncio.Task[Any]]) -> list[Any]:
    """Results and errors of tasks, which are cancelled; a task that swallows a cancellation is cancelled again."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1)
    return await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(operator: Operator, kinds: WatchedKinds, ready: asyncio.Event, leave: asyncio.Event) -> None:
    """Run kopf. It fails when a kind is no longer served, before that watch can be stopped."""
    while True:
        try:
            return await _kopf(operator, kinds.begin(), ready, leave)
        except APINotFoundError as error:
            log.warning("a watched kind is gone; all watches begin again", extra={"error": str(error)})
            await asyncio.sleep(1)


async def _kopf(operator: Operator, insights: Insights, ready: asyncio.Event, leave: asyncio.Event) -> None:
    namespace = operator.settings.watch_namespace
    await kopf.operator(
        registry=handlers.register(operator),
        settings=handlers.kopf_settings(operator.backend),
        insights=insights,
        ready_flag=ready,
        stop_flag=leave,
        standalone=True,
        clusterwide=not namespace,
        namespaces=[namespace] if namespace else [],
    )


async def _take_signals(ready: asyncio.Event, terminate: asyncio.Event) -> None:
    """Take the signal handlers from each kopf that starts: with its own, watches would end before passes do."""
    while True:
        await ready.wait()
        ready.clear()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, terminate.set)


def _end_within(seconds: float) -> None:
    """End the process by then: also when the loop, or a thread that asyncio.run() waits for, hangs."""
    loop = asyncio.get_running_loop()

    def give_up() -> None:
        names = sorted(task.get_name() for task in asyncio.all_tasks(loop))
        log.error("did not end in time", extra={"seconds": seconds, "tasks": names})
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()


async def _exit_when_unhealthy(operator: Operator) -> None:
    """Exit when a watch is dead. At once: a pass may be interrupted anywhere."""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        if unhealthy_reason := operator.unhealthy_reason():
            log.error("unhealthy, exiting", extra={"reason": unhealthy_reason})
            os._exit(UNHEALTHY)


if __name__ == "__main__":
    sys.exit(main())
