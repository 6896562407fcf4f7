"""A small Hub on this machine with one model, org/name, which is slow, fails and is gone when a test says so."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "a" * 40
WEIGHTS = "model-0000{}-of-00002.safetensors"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"pickled",
    WEIGHTS.format(1): bytes(range(256)) * 1024,
    WEIGHTS.format(2): bytes(reversed(range(256))) * 1024,
}
_PARTS = 8


class Hub:
    """The state of the Hub. What is to go wrong is counted down, so that no test depends on time."""

    def __init__(self, files: Mapping[str, bytes] = FILES) -> None:
        self.files = files
        self.server: ThreadingHTTPServer | None = None
        self.port = 0
        self.endpoint = ""
        self.running = threading.Event()
        """While it is not set, weights are sent up to their middle only."""
        self.running.set()
        self.failures: dict[int, int] = {}
        """HTTP status -> how many requests are answered with it."""
        self.asked: Counter[str] = Counter()
        """How many requests there were for each path."""
        self.sent: dict[str, list[range]] = defaultdict(list)
        """Bytes of each file that were sent."""
        self.halves = threading.Semaphore(0)
        """Released when half of a weight file was sent."""

    @property
    def gone(self) -> bool:
        return self.server is None

    def open(self) -> None:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.port = server.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Transfers break off, connections end, and nobody listens at the port, until it is opened again."""
        server, self.server = self.server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def take(self, counts: dict[int, int]) -> int:
        """One of the failures that are still to come, or 0."""
        for status, left in counts.items():
            if left:
                counts[status] = left - 1
                return status
        return 0

    def times_sent(self, name: str) -> set[int]:
        """How often each byte of a file was sent."""
        return {sum(i in sent for sent in self.sent[name]) for i in range(0, len(self.files[name]), 1024)}


@contextmanager
def serving(files: Mapping[str, bytes] = FILES) -> Iterator[Hub]:
    hub = Hub(files)
    hub.open()
    try:
        yield hub
    finally:
        hub.close()
        hub.running.set()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.hub.asked[self.path] += 1
        if self.hub.gone:
            self.close_connection = True
        elif status := self.hub.take(self.hub.failures):
            self._answer(status, b"")
        elif "/resolve/" in self.path or self.path.startswith("/storage/"):
            self._file(max((name for name in self.hub.files if self.path.endswith(f"/{name}")), key=len))
        else:
            self._answer(
                200,
                json.dumps(_tree(self.hub.files) if "/tree/" in self.path else {"id": "x", "sha": COMMIT}).encode(),
            )

    do_HEAD = do_GET  # noqa: N815

    def _file(self, name: str) -> None:
        content = self.hub.files[name]
        if "/resolve/" in self.path and name.endswith(".safetensors"):
            self._redirect(name, content)
            return
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers = {"X-Repo-Commit": COMMIT, "ETag": _etag(content)}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self._headers(206 if begin else 200, len(content) - begin, headers)
        if self.command == "GET":
            self._send(name, content, begin)

    def _redirect(self, name: str, content: bytes) -> None:
        """Large files are on other hosts."""
        location = {"Location": f"http://localhost:{self.hub.port}/storage/{name}"}
        linked = {"X-Linked-ETag": _etag(content), "X-Linked-Size": str(len(content))}
        self._headers(302, 0, {"X-Repo-Commit": COMMIT} | location | linked)

    def _send(self, name: str, content: bytes, begin: int) -> None:
        """In parts. A transfer waits in its middle, and breaks off there if the Hub is gone."""
        size = max(1, len(content) // _PARTS)
        for start in range(begin, len(content), size):
            if start >= len(content) // 2 and begin < len(content) // 2 and name.endswith(".safetensors"):
                self.hub.halves.release()
                self.hub.running.wait()
                if self.hub.gone:
                    self.close_connection = True
                    return
            part = content[start : start + size]
            self.wfile.write(part)
            self.hub.sent[name].append(range(start, start + len(part)))

    def _answer(self, status: int, body: bytes) -> None:
        self._headers(status, len(body), {"Retry-After": "0"} if status == 429 else {})
        if self.command == "GET":
            self.wfile.write(body)

    def _headers(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


def _etag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()}"'


def _tree(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for name, content in files.items()
    ]
