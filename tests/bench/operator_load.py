"""The people of the bench: they submit jobs, and look at what came of them, over one pool of connections.

Raw JSON over aiohttp, because what the load costs is taken from the two cores that everybody shares.
Called by operator_scale.py; the bare handler borrows `connect`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from builders import Json, resource

NAMESPACE = "default"
JOBS = f"/apis/finetune.dev/v1alpha1/namespaces/{NAMESPACE}/finetunejobs"
RUNS = f"/apis/kubeflow.org/v1/namespaces/{NAMESPACE}/pytorchjobs"
SIDE_BY_SIDE = 16
"""Submissions under way at once."""
PAGE = 500


@dataclass(frozen=True)
class Server:
    """An API server and how to log in."""

    url: str
    token: str
    authority: str

    @classmethod
    def of(cls, kubeconfig: Path) -> Server:
        """Of a kubeconfig as the test bed writes them."""
        config = json.loads(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        return cls(cluster["server"], config["users"][0]["user"]["token"], cluster["certificate-authority"])


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    """A session in which paths are enough."""
    tls = ssl.create_default_context(cafile=server.authority)
    headers = {"Authorization": f"Bearer {server.token}"}
    connector = aiohttp.TCPConnector(ssl=tls)
    async with aiohttp.ClientSession(
        server.url, headers=headers, connector=connector, raise_for_status=True
    ) as found:
        yield found


async def submit(session: aiohttp.ClientSession, names: Iterable[str]) -> None:
    """Submit jobs as fast as the server takes them."""
    left = iter(names)

    async def one_after_the_other() -> None:
        for name in left:
            await _create(session, name)

    await asyncio.gather(*(one_after_the_other() for _ in range(SIDE_BY_SIDE)))


async def delays(session: aiohttp.ClientSession, count: int, per_second: float) -> list[float]:
    """Submit jobs at a pace; seconds from each answered submission to the sight of its PyTorchJob."""
    seen: dict[str, float] = {}
    listed = await _get(session, RUNS)
    watcher = asyncio.create_task(_watch_runs(session, listed["metadata"]["resourceVersion"], seen, count))
    answered: dict[str, float] = {}

    async def one(number: int) -> None:
        await asyncio.sleep(number / per_second)
        await _create(session, f"paced-{number}")
        answered[f"paced-{number}-1"] = time.monotonic()

    await asyncio.gather(*(one(number) for number in range(count)))
    await asyncio.wait_for(watcher, 60)
    return [max(0.0, seen[name] - at) for name, at in answered.items()]


async def count_runs(session: aiohttp.ClientSession) -> int:
    """How many PyTorchJobs there are; one of them is fetched and the rest is counted by the server."""
    listed = await _get(session, f"{RUNS}?limit=1")
    return len(listed["items"]) + int(listed["metadata"].get("remainingItemCount", 0))


async def count_accepted(session: aiohttp.ClientSession) -> int:
    """How many jobs are accepted."""
    return sum([_is_accepted(job) async for job in _jobs(session)])


async def versions(session: aiohttp.ClientSession) -> dict[str, str]:
    """The resourceVersion of every job: another one means that somebody wrote to it."""
    return {job["metadata"]["name"]: job["metadata"]["resourceVersion"] async for job in _jobs(session)}


async def _jobs(session: aiohttp.ClientSession) -> AsyncIterator[Json]:
    token = ""
    while True:
        listed = await _get(session, f"{JOBS}?limit={PAGE}" + (f"&continue={token}" if token else ""))
        for job in listed["items"]:
            yield job
        token = listed["metadata"].get("continue", "")
        if not token:
            return


def _is_accepted(job: Json) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return any((c["type"], c["status"]) == ("Accepted", "True") for c in conditions)


async def _create(session: aiohttp.ClientSession, name: str) -> None:
    async with session.post(JOBS, json=resource(name=name)) as answer:
        await answer.read()


async def _get(session: aiohttp.ClientSession, path: str) -> Json:
    async with session.get(path) as answer:
        found: Json = await answer.json()
        return found


async def _watch_runs(session: aiohttp.ClientSession, version: str, seen: dict[str, float], count: int) -> None:
    path = f"{RUNS}?watch=true&resourceVersion={version}"
    async with session.get(path, timeout=aiohttp.ClientTimeout(total=None), read_bufsize=1 << 22) as answer:
        async for line in answer.content:
            seen.setdefault(json.loads(line)["object"]["metadata"]["name"], time.monotonic())
            if len(seen) == count:
                return
