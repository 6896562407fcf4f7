"""`python -m finetune_operator`: read the settings, run the loops, and exit on SIGTERM or when watches are dead.

Exit codes: 0 after SIGTERM; 1 after an error that ends the process (supervisor.py); 3 when a watch is dead and a
restart of the watches did not help (Kubernetes restarts the pod).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any

import kopf
from pydantic import ValidationError

from finetune_kube.nesting import allow_any_depth
from finetune_plan import backends
from finetune_plan.backends.protocol import Backend

from . import event_queue, handlers, logs, server
from .cluster import KubernetesCluster
from .discovery import WatchedKinds
from .runtime import Operator
from .settings import Settings
from .supervisor import supervise

UNHEALTHY = 3
CHECK_SECONDS = 5.0
DRAIN_SECONDS = 15.0
"""Seconds that passes in progress, and then events that wait, may take after SIGTERM."""
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
    allow_any_depth()
    gc.freeze()  # what the imports have made stays for good
    gc.set_threshold(GC_THRESHOLD)
    asyncio.run(run(settings, backends.DEFAULT))
    return 0


async def run(settings: Settings, backend: Backend) -> None:
    """Serve until SIGTERM."""
    cluster = KubernetesCluster(settings, backend)
    operator = Operator(cluster, settings, backend)
    web = await supervise("server", lambda: server.serve(operator))
    ready, terminate = asyncio.Event(), asyncio.Event()
    kinds = WatchedKinds(operator)
    # Before kopf starts: it cancels at its end every task that began after it.
    workers = [_task("worker", operator.work) for _ in range(settings.workers)]
    loops = [
        _task("resync", operator.resync),
        _task("heartbeat", operator.heartbeat),
        _task("health check", lambda: _exit_when_unhealthy(operator)),
        _task("discovery", kinds.follow),
        _task("signals", lambda: _take_signals(ready, terminate)),
        *(_task("log reader", operator.progress.read) for _ in range(settings.progress_readers)),
        *(_task("event writer", operator.events.write) for _ in range(event_queue.WRITERS)),
        asyncio.create_task(terminate.wait()),
    ]
    watch = _task("watches", lambda: _watch(operator, kinds, ready))
    await asyncio.wait([*workers, *loops, watch], return_when=asyncio.FIRST_COMPLETED)
    _end_within(SHUTDOWN_SECONDS)
    operator.stop()
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            await asyncio.wait(workers)
            await operator.events.drained()
    ended = await _cancelled([*workers, *loops, watch])
    await web.cleanup()
    await cluster.close()
    for error in ended:
        if isinstance(error, Exception):
            raise error


def _task(name: str, run: Callable[[], Awaitable[None]]) -> asyncio.Task[Any]:
    return asyncio.create_task(supervise(name, run), name=name)


async def _cancelled(tasks: Collection[asyncio.Task[Any]]) -> list[Any]:
    """Results and errors of tasks, which are cancelled; a task that swallows a cancellation is cancelled again."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1)
    return await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(operator: Operator, kinds: WatchedKinds, ready: asyncio.Event) -> None:
    """Run kopf, and start it again when a watch is dead. It fails when a kind is no longer served."""
    while True:
        operator.restart.clear()
        kopf_task = asyncio.create_task(_kopf(operator, kinds, ready))
        asked = asyncio.create_task(operator.restart.wait())
        try:
            await asyncio.wait([kopf_task, asked], return_when=asyncio.FIRST_COMPLETED)
            if kopf_task.done():
                return await kopf_task
        finally:
            await _cancelled([kopf_task, asked])


async def _kopf(operator: Operator, kinds: WatchedKinds, ready: asyncio.Event) -> None:
    namespace = operator.settings.watch_namespace
    await kopf.operator(
        registry=handlers.register(operator),
        settings=handlers.kopf_settings(operator.backend),
        insights=kinds.begin(),
        ready_flag=ready,
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
    """Exit when a watch stays dead. At once: a pass may be interrupted anywhere."""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        operator.check_heartbeat()
        if unhealthy_reason := operator.unhealthy_reason():
            log.error("unhealthy, exiting", extra={"reason": unhealthy_reason})
            os._exit(UNHEALTHY)


if __name__ == "__main__":
    sys.exit(main())
