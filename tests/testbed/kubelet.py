"""A node's kubelet as far as logs and commands go: the API server passes `pods/log` and `pods/exec` on to it.

Logs are what the test writes. Commands are started here, as the processes that they say; the claims of the pod are
folders of the test.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import WSMsgType, web
from aiohttp.typedefs import Handler

from testbed.api import Api, Json
from testbed.pods import run_pod
from testbed.process import free_port

PROTOCOL = "v4.channel.k8s.io"


class Kubelet:
    """A Node and an HTTPS server behind it; `with` registers and removes them."""

    def __init__(self, api: Api, certificate: Path, key: Path, namespace: str, folder: Path) -> None:
        self.name, self.namespace = f"node-{namespace}", namespace
        self._api, self._port = api, free_port()
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(certificate, key)
        self._logs: dict[str, list[tuple[datetime, str]]] = {}
        self._ended: set[str] = set()
        self._transports: set[asyncio.Transport] = set()
        self._streams: list[asyncio.Transport] = []
        self.failing = False
        """Whether requests for logs are answered with an error."""
        self.claims = folder / "claims"
        self.claims.mkdir()
        self.commands: list[list[str]] = []
        self.break_after: Callable[[int], bool] = lambda _: False
        """Asked after each frame from the client, with the bytes that it has sent: whether the connection breaks."""
        self.break_output_after: int | None = None
        """Bytes of standard output after which a connection breaks."""
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        register_node(self._api, self.name, self._port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._api.delete(f"/api/v1/nodes/{self.name}")
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def run(self, pod: str) -> None:
        """The pod is here, and runs."""
        bind_and_run(self._api, self.namespace, pod, self.name)

    def say(self, pod: str, *lines: str) -> None:
        """The pod writes to its log."""
        self._logs.setdefault(pod, []).extend((datetime.now(UTC), line) for line in lines)

    def end_log(self, pod: str) -> None:
        self._ended.add(pod)

    def break_logs(self) -> None:
        """Break every stream of a log that is under way."""
        for transport in self._streams:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(transport.abort)
        self._streams.clear()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        app = web.Application(middlewares=[self._remember])
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._log)
        app.router.add_route("*", "/exec/{namespace}/{pod}/{container}", self._exec)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._port, ssl_context=self._tls).start()
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()
        for transport in self._transports:
            transport.abort()
        await asyncio.sleep(0.1)  # a TLS connection takes two turns of the loop to be gone

    @web.middleware
    async def _remember(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if isinstance(request.transport, asyncio.Transport):
            self._transports.add(request.transport)
        return await handler(request)

    async def _log(self, request: web.Request) -> web.StreamResponse:
        if self.failing:
            return web.Response(status=500, text="the disk of this node is broken")
        with suppress(ConnectionError):
            return await self._told(request)
        return web.StreamResponse()

    async def _told(self, request: web.Request) -> web.StreamResponse:
        pod, query = request.match_info["pod"], request.query
        answer = web.StreamResponse()
        await answer.prepare(request)
        if isinstance(request.transport, asyncio.Transport):
            self._streams.append(request.transport)
        since = datetime.fromisoformat(query.get("sinceTime", "1970-01-01T00:00:00Z"))
        lines = self._logs.get(pod, [])
        at = max(0, len(lines) - int(query["tailLines"])) if "tailLines" in query else 0
        while True:
            fresh = self._logs.get(pod, [])[at:]  # the test may say more while these are sent
            for time, text in fresh:
                if time >= since:
                    stamp = f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond:06}000Z "
                    await answer.write(f"{stamp if query.get('timestamps') == 'true' else ''}{text}\n".encode())
            at += len(fresh)
            if query.get("follow") != "true" or pod in self._ended:
                return answer
            await asyncio.sleep(0.02)

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=(PROTOCOL,), max_msg_size=0)
        await socket.prepare(request)
        command = [self._mapped(word) for word in request.query.getall("command")]
        self.commands.append(command)
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command[1:], stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        feeding = asyncio.create_task(self._feed(request, socket, process))
        assert process.stdout is not None
        assert process.stderr is not None
        await asyncio.gather(
            self._pump(request, socket, 1, process.stdout), self._pump(request, socket, 2, process.stderr)
        )
        code = await process.wait()
        with suppress(ConnectionError):
            await socket.send_bytes(b"\x03" + _status(code))
        feeding.cancel()
        await socket.close()
        return socket

    async def _feed(
        self, request: web.Request, socket: web.WebSocketResponse, process: asyncio.subprocess.Process
    ) -> None:  # fmt: skip
        sent = 0
        assert process.stdin is not None
        async for message in socket:
            if message.type is not WSMsgType.BINARY or not message.data[1:]:
                continue
            sent += len(message.data) - 1
            process.stdin.write(message.data[1:])
            await process.stdin.drain()
            if self.break_after(sent) and request.transport:
                request.transport.abort()
                break
        process.stdin.close()

    async def _pump(
        self, request: web.Request, socket: web.WebSocketResponse, channel: int, pipe: asyncio.StreamReader
    ) -> None:  # fmt: skip
        passed = 0
        while data := await pipe.read(1 << 16):
            passed += len(data)
            if self.break_output_after is not None and passed > self.break_output_after and request.transport:
                request.transport.abort()
            with suppress(ConnectionError):  # the command goes on writing to nobody, as in a real pod
                await socket.send_bytes(bytes([channel]) + data)

    def _mapped(self, word: str) -> str:
        """Paths of the pod are folders of the test."""
        folder = self.claims.parent
        return word.replace("/mnt/claims", str(self.claims)).replace("/tmp/finetune-alive", str(folder / "alive"))


class SilentKubelet:
    """A Node whose kubelet takes connections and never answers; `with` registers and removes it."""

    def __init__(self, api: Api, name: str) -> None:
        self.name, self._api, self._socket = name, api, socket.socket()

    def __enter__(self) -> Self:
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(1024)  # the kernel takes connections, and nobody reads
        register_node(self._api, self.name, self._socket.getsockname()[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._api.delete(f"/api/v1/nodes/{self.name}")
        self._socket.close()


def register_node(api: Api, name: str, port: int) -> None:
    """A Node whose kubelet listens on a port of this machine."""
    address = [{"type": "InternalIP", "address": "127.0.0.1"}]
    status: Json = {"addresses": address, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}
    api.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    api.patch(f"/api/v1/nodes/{name}/status", {"status": status})


def bind_and_run(api: Api, namespace: str, pod: str, node: str) -> None:
    """The pod is on that node, and runs."""
    target = {"apiVersion": "v1", "kind": "Node", "name": node}
    binding: Json = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": target}
    api.request("POST", f"/api/v1/namespaces/{namespace}/pods/{pod}/binding", binding)
    run_pod(api, namespace, pod)


def _status(code: int) -> bytes:
    if code == 0:
        return b'{"status":"Success"}'
    return (
        b'{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"%d"}]}}'
        % code
    )
