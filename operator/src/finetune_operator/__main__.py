"""`python -m finetune_operator`: read the settings, start the loops, and end when told to or when blind.

Exit codes: 0 after SIGTERM; 1 after an error; 3 when the cluster is no longer seen (Kubernetes starts us anew).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys

import kopf
from pydantic import ValidationError

from finetune_plan import backends
from finetune_plan.backends.protocol import Backend

from . import handlers, logs, server
from .cluster import KubernetesCluster
from .runtime import Operator
from .settings import Settings

UNHEALTHY = 3
CHECK_SECONDS = 5.0
DRAIN_SECONDS = 15.0
"""Seconds that looks in progress may take after SIGTERM: below the pod's own grace period of 30."""

GC_THRESHOLD = 50_000
"""Containers between two looks for garbage. A list of thousands of objects is mostly new containers that stay: at
Python's 700 the looks take longer than reading the list does."""

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
    # Before kopf starts: it cancels at its end every task that began after it.
    workers = [asyncio.create_task(operator.work()) for _ in range(settings.workers)]
    tasks = [
        *workers,
        *map(asyncio.create_task, (operator.resync(), operator.heartbeat(), _exit_when_unhealthy(operator))),
    ]
    tasks.append(asyncio.create_task(_watch(operator)))
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    operator.stop()
    await asyncio.wait(workers, timeout=DRAIN_SECONDS)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    await web.cleanup()
    await cluster.close()
    for error in ended:
        if isinstance(error, Exception):
            raise error


async def _watch(operator: Operator) -> None:
    namespace = operator.settings.watch_namespace
    await kopf.operator(
        registry=handlers.register(operator),
        settings=handlers.kopf_settings(operator.settings, operator.backend),
        standalone=True,
        clusterwide=not namespace,
        namespaces=[namespace] if namespace else [],
    )


async def _exit_when_unhealthy(operator: Operator) -> None:
    """End the process when it no longer sees the cluster. At once: a pass may be interrupted anywhere."""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        if unhealthy_reason := operator.unhealthy_reason():
            log.error("the cluster is no longer seen", extra={"unhealthy_reason": unhealthy_reason})
            os._exit(UNHEALTHY)


if __name__ == "__main__":
    sys.exit(main())
