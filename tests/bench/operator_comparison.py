"""What one comparison of metadata costs, beside the full list that it replaces. Used by operator_scale.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

from bench import operator_load as load
from bench.figures import Figure, cpu_seconds
from finetune_operator.cache import Cache
from finetune_operator.cluster import Kind, KubernetesCluster
from finetune_operator.comparison import LONGEST_PAUSE, Comparison
from finetune_operator.health import WatchEvidence
from finetune_operator.settings import Settings
from finetune_operator.transport import Transport
from finetune_plan.backends import DEFAULT as BACKEND
from testbed.api import Json
from testbed.control_plane import ControlPlane

LISTED = (Kind.JOBS, Kind.RUNS, Kind.PODS)


def figures(plane: ControlPlane, jobs: int) -> Iterator[Figure]:
    """Seconds of processor and clock, and bytes, in a process of its own cache; a pod for each job is made first."""
    account = {"name": "default", "namespace": load.NAMESPACE}
    plane.cluster.api.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    for number in range(jobs):
        plane.cluster.api.create(_pod(number))
    settings = Settings(kubeconfig=plane.cluster.kubeconfig, own_namespace=load.NAMESPACE)
    server = [plane.processes[name].pid for name in ("etcd", "kube-apiserver")]
    yield from asyncio.run(_both(settings, server))


async def _both(settings: Settings, server: list[int]) -> list[Figure]:
    cluster = _Counting(settings, server)
    cache, evidence = Cache(BACKEND), {kind: WatchEvidence() for kind in Kind}
    full = await _cost("full list", cluster, lambda: _full(cluster, cache))
    for kind in Kind:
        async for versions, _ in cluster.versions(kind):
            for key, version in versions.items():
                evidence[kind].delivered(None, key, version)
    compare = Comparison(cluster, evidence, _nothing, grace=0)
    found = full + await _cost("comparison", cluster, compare.run)
    await cluster.close()
    pause = compare.pause_seconds(settings.resync_seconds)
    share = 100 * found[-4].value / pause
    return [
        *found,
        Figure("comparison: until the next one", pause, "s", most=LONGEST_PAUSE),
        Figure("comparison: processor of the operator", share, "% of a core", most=10),
    ]


async def _cost(name: str, cluster: _Counting, work: Callable[[], Awaitable[object]]) -> list[Figure]:
    cluster.received, begun, used = 0, time.monotonic(), time.process_time()
    before = cpu_seconds(cluster.server)
    await work()
    return [
        Figure(f"{name}: processor time", time.process_time() - used, "s"),
        Figure(f"{name}: processor time of API server and etcd", cpu_seconds(cluster.server) - before, "s"),
        Figure(f"{name}: until done", time.monotonic() - begun, "s"),
        Figure(f"{name}: received", cluster.received / (1 << 20), "MiB"),
    ]


async def _full(cluster: _Counting, cache: Cache) -> None:
    for kind in LISTED:
        async for items, _ in cluster.pages(kind):
            for raw in items:
                cache.put(kind, raw)


async def _nothing(*_: object) -> None:
    return


class _Transport(Transport):
    """Counts bytes of answers."""

    received = 0

    async def request(self, *arguments: object, **options: object) -> bytes:
        data = await super().request(*arguments, **options)  # type: ignore[arg-type]
        self.received += len(data)
        return data


class _Counting(KubernetesCluster):
    """The cluster, and the bytes that it sent."""

    def __init__(self, settings: Settings, server: list[int]) -> None:
        super().__init__(settings, BACKEND)
        self.server = server
        self._http: _Transport = _Transport(settings)

    @property
    def received(self) -> int:
        return self._http.received

    @received.setter
    def received(self, count: int) -> None:
        self._http.received = count


def _pod(number: int) -> Json:
    """The pod of a run as the Training Operator labels it, which nothing schedules."""
    labels = {"finetune.dev/job": f"burst-{number}", "finetune.dev/job-uid": f"{number}", "finetune.dev/run": "1"}
    metadata = {"name": f"burst-{number}-1-worker-0", "namespace": load.NAMESPACE, "labels": labels}
    spec = {"containers": [{"name": BACKEND.container, "image": "none"}], "automountServiceAccountToken": False}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
