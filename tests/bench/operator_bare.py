"""What kopf can do at most: a handler that creates the PyTorchJob, says so in the status, and knows nothing else.

The measure of `make bench-operator`; started by operator_scale.py as `python -m bench.operator_bare KUBECONFIG
MANIFEST`. No checks, no retries, no events, no memory: an operator must do more, and it may cost half the speed.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

import aiohttp
import kopf

from bench.operator_load import JOBS, RUNS, Server, connect

NAME, UID = "the-name-of-the-job", "the-uid-of-the-job"
"""Stand in the manifest for what differs from job to job."""
READY = "the bare handler serves"
STATUS = {
    "phase": "Starting",
    "conditions": [
        {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "The job is valid.",
         "lastTransitionTime": "2026-01-01T00:00:00Z"},
    ],
}  # fmt: skip


async def main(server: Server, manifest: str) -> None:
    logging.getLogger("kopf").setLevel(logging.ERROR)
    async with connect(server) as session:
        await kopf.operator(registry=_registry(server, session, manifest), settings=_settings(), clusterwide=True)


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    return settings


def _registry(server: Server, session: aiohttp.ClientSession, manifest: str) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    # The event handler and not the creation handler: kopf writes an annotation of its own after the latter.
    @kopf.on.event("finetune.dev", "v1alpha1", "finetunejobs", registry=registry)
    async def serve(event: Any, name: str, uid: str, status: Any, **_: Any) -> None:
        if event["type"] in (None, "ADDED") and not status:
            await _write(session, name, manifest.replace(NAME, name).replace(UID, uid))

    @kopf.on.startup(registry=registry)
    async def ready(**_: Any) -> None:
        print(READY, flush=True)

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(server=server.url, ca_path=server.authority, scheme="Bearer", token=server.token)

    return registry


async def _write(session: aiohttp.ClientSession, name: str, manifest: str) -> None:
    async with session.post(RUNS, data=manifest, headers={"Content-Type": "application/json"}) as answer:
        await answer.read()
    headers = {"Content-Type": "application/merge-patch+json"}
    async with session.patch(f"{JOBS}/{name}/status", json={"status": STATUS}, headers=headers) as answer:
        await answer.read()


if __name__ == "__main__":
    asyncio.run(main(Server.of(Path(sys.argv[1])), Path(sys.argv[2]).read_text()))
