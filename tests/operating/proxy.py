"""Stands between the operator and the API server: counts writes, and lets a test act right after one of them.

The server has carried a write out when the test is told of it, and the operator has not heard so yet: the moment
at which a crash hurts most.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web

from builders import Json
from testbed.cluster import write_private
from testbed.process import free_port

WRITES = ("POST", "PUT", "PATCH", "DELETE")
_HOP = frozenset({"connection", "content-length", "content-encoding", "host", "transfer-encoding"})


class Proxy:
    """A plain HTTP server that passes everything on. `after(n)` is called after the n-th write, before its answer.

    Heartbeats (leases) are passed on and not counted: when they come depends on the clock.
    """

    def __init__(self, kubeconfig: Path, folder: Path, after: Callable[[int], bool] = lambda _: False) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self._server, self._after, self._port = cluster["server"], after, free_port()
        self._tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self._headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}"}
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._counted = threading.Condition()
        self.writes: list[tuple[str, str]] = []
        """Method and path, in order."""
        cluster = {"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{self._port}"}}
        context = {"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}
        document: Json = {"apiVersion": "v1", "kind": "Config", "current-context": "proxy", "clusters": [cluster],
                          "contexts": [context], "users": [{"name": "proxy", "user": {}}]}  # fmt: skip
        self.kubeconfig = write_private(folder / f"kubeconfig-{self._port}", json.dumps(document))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def until(self, count: int) -> None:
        """Return once so many writes were seen."""
        with self._counted:
            assert self._counted.wait_for(lambda: len(self.writes) >= count, 30), self.writes

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        app = web.Application(client_max_size=1 << 24)
        async with aiohttp.ClientSession(auto_decompress=False) as session:

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
        timeout = aiohttp.ClientTimeout(total=None)
        async with session.request(
            request.method, url, headers=headers, data=body or None, ssl=self._tls, timeout=timeout
        ) as found:
            if self._is_counted(request):
                with self._counted:
                    self.writes.append((request.method, request.path))
                    self._counted.notify_all()
                if self._after(len(self.writes)):
                    raise web.HTTPServiceUnavailable  # to nobody: whoever asked is dead
            kept = {k: v for k, v in found.headers.items() if k.lower() not in _HOP - {"content-encoding"}}
            answer = web.StreamResponse(status=found.status, headers=kept)
            await answer.prepare(request)
            async for chunk in found.content.iter_any():
                await answer.write(chunk)
            return answer

    def _is_counted(self, request: web.Request) -> bool:
        return request.method in WRITES and "/leases" not in request.path
