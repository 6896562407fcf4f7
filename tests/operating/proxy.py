"""Stands between the operator and the API server: counts writes, and lets a test bend what the operator is told.

The server has carried a write out when the lens hears of it, and the operator has not: the moment at which a
crash hurts most.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import aiohttp
from aiohttp import web

from builders import Json
from testbed.cluster import write_private
from testbed.process import free_port

WRITES = ("POST", "PUT", "PATCH", "DELETE")
LONGEST_LINE = 1 << 22
"""Bytes of one watch event."""
_HOP = frozenset({"connection", "content-length", "content-encoding", "host", "transfer-encoding"})


def is_counted(method: str, path: str) -> bool:
    """Whether a request is a write, heartbeats and Events apart: when those come depends on the clock."""
    return method in WRITES and "/leases" not in path and not path.endswith("/events")


class Place(NamedTuple):
    """Where a write is in a life. Its number is not always the same: two updates of a status may become one, where
    two things happen at once. Creations and deletions stay apart.
    """

    milestones: int
    """Creations and deletions up to the write, itself included."""
    since: int
    """Writes since the last of them, itself included."""


def place(milestones: Sequence[bool]) -> Place:
    """Of the last of the writes so far; for each, whether it is a creation or a deletion."""
    since = next((i for i, milestone in enumerate(reversed(milestones)) if milestone), len(milestones))
    return Place(sum(milestones), since)


class Failure(NamedTuple):
    """An error of the server."""

    code: int
    headers: Mapping[str, str] = {}

    def response(self) -> web.Response:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.code, "message": "too bad"}
        return web.json_response(status, status=self.code, headers=self.headers)


class Lens:
    """What the operator is let see; this one is clear. The proxy's own thread calls it."""

    def wrote(self, at: Place, answer: Json) -> bool:
        """The server has carried out the operator's write at that place. True: the answer is lost."""
        return False

    def listed(self, kind: str) -> Mapping[str, str]:
        """Query parameters that a list of a kind, such as "pods", gets besides its own."""
        return {}

    def hides(self, path: str) -> bool:
        """Whether a GET at a path, such as /apis/kubeflow.org/v1, finds nothing there."""
        return False

    def holds(self, method: str, path: str) -> bool:
        """Whether a request is taken and never answered."""
        return False

    def fails(self, path: str) -> Failure | None:
        """How a request, watches apart, fails before the server hears of it; None: it does not."""
        return None

    async def stall(self) -> None:
        """What precedes the error with which a lost write is answered."""

    def answers(self, path: str) -> Json | None:
        """What a GET at a path is answered with instead; None: what the server says."""
        return None

    def opened(self, kind: str) -> None:
        """A watch of a kind has begun."""

    async def told(self, kind: str, opened: float, event: Json) -> Json | None:
        """A watch event as it is passed on, perhaps later; None: never. An ERROR ends its stream.

        opened: when the stream began, in seconds of time.monotonic().
        """
        return event


class Proxy:
    """A plain HTTP server that passes everything on, as its lens lets it."""

    def __init__(self, kubeconfig: Path, folder: Path, lens: Lens | None = None) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self._server, self._lens, self._port = cluster["server"], lens or Lens(), free_port()
        self._tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self._headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}"}
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.writes: list[tuple[str, str]] = []
        """Method and path, in order."""
        cluster = {"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{self._port}"}}
        context = {"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}
        document: Json = {"apiVersion": "v1", "kind": "Config", "current-context": "proxy", "clusters": [cluster],
                          "contexts": [context], "users": [{"name": "proxy", "user": {}}]}  # fmt: skip
        self.kubeconfig = write_private(folder / f"kubeconfig-{self._port}", json.dumps(document))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        app = web.Application(client_max_size=1 << 24)
        endless = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            auto_decompress=False, read_bufsize=LONGEST_LINE, timeout=endless
        ) as session:

            async def pass_on(request: web.Request) -> web.StreamResponse:
                return await self._pass_on(session, request)

            app.router.add_route("*", "/{path:.*}", pass_on)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self._port).start()
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _pass_on(self, session: aiohttp.ClientSession, request: web.Request) -> web.StreamResponse:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP} | self._headers
        body, url = await request.read(), f"{self._server}{request.rel_url}"
        if request.method == "GET" and self._lens.hides(request.path):
            raise web.HTTPNotFound
        if self._lens.holds(request.method, request.path):
            await asyncio.Event().wait()
        if "watch" not in request.query and (failure := self._lens.fails(request.path)):
            return failure.response()
        if request.method == "GET" and (bent := self._lens.answers(request.path)) is not None:
            return web.json_response(bent)
        watched, kind = "watch" in request.query, request.path.rpartition("/")[2]
        if request.method == "GET" and not watched:
            url = f"{self._server}{request.rel_url.update_query(dict(self._lens.listed(kind)))}"
        async with session.request(request.method, url, headers=headers, data=body or None, ssl=self._tls) as found:
            if watched and found.status == 200:
                return await self._tell(request, found, kind)
            data = await found.read()
            if (
                found.status < 400
                and is_counted(request.method, request.path)
                and self._took(request, json.loads(data))
            ):
                await self._lens.stall()
                return Failure(500).response()
            kept = {k: v for k, v in found.headers.items() if k.lower() not in _HOP - {"content-encoding"}}
            return web.Response(status=found.status, headers=kept, body=data)

    async def _tell(self, request: web.Request, found: aiohttp.ClientResponse, kind: str) -> web.StreamResponse:
        """One watch, event by event."""
        answer, opened = web.StreamResponse(headers={"Content-Type": "application/json"}), time.monotonic()
        with suppress(ConnectionError):  # the operator may have died meanwhile
            await answer.prepare(request)
            self._lens.opened(kind)
            async for line in found.content:
                event = await self._lens.told(kind, opened, json.loads(line))
                if event is not None:
                    await answer.write(json.dumps(event).encode() + b"\n")
                    if event["type"] == "ERROR":
                        break
        return answer

    def _took(self, request: web.Request, answer: Json) -> bool:
        self.writes.append((request.method, request.path))
        return self._lens.wrote(place([method in ("POST", "DELETE") for method, _ in self.writes]), answer)
