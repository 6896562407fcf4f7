"""A command in a container of a pod: bytes in, bytes out, and its exit code (Kubernetes' channel protocol, v4).

v4 has no end of standard input, so the programs that we run know beforehand how many bytes will come.
Each frame's first byte is the channel: 0 stdin, 1 stdout, 2 stderr, 3 the ending as a Status object.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from urllib.parse import urlencode

from kubernetes.stream.ws_client import create_websocket
from websocket import ABNF, WebSocket, WebSocketBadStatusException, WebSocketException

from .errors import Unreachable
from .server import Server, api_error

PROTOCOL = "v4.channel.k8s.io"
STDIN, STDOUT, STDERR, ENDING = range(4)
SILENCE_SECONDS = 120.0
"""Longest time without a frame while one is expected."""


class Command:
    """A command that runs."""

    def __init__(self, socket: WebSocket, server: str) -> None:
        self._socket, self._server = socket, server
        self.code: int | None = None
        """Exit code, once output() has ended."""
        self.complaint = ""
        """What it wrote to standard error."""

    def write(self, data: bytes) -> None:
        """Raises Unreachable."""
        try:
            self._socket.send_binary(bytes([STDIN]) + data)
        except (WebSocketException, OSError) as error:
            raise self._lost(error) from None

    def output(self) -> Iterator[bytes]:
        """Standard output as it comes, to its end. Raises Unreachable if the connection breaks before that."""
        while True:
            channel, data = self._frame()
            if channel == STDOUT:
                if data:
                    yield data
            elif channel == STDERR:
                self.complaint += data.decode(errors="replace")
            elif channel == ENDING:
                self.code, said = exit_code(data)
                self.complaint += said
                return

    def _frame(self) -> tuple[int, bytes]:
        try:
            opcode, data = self._socket.recv_data()
        except (WebSocketException, OSError) as error:
            raise self._lost(error) from None
        if opcode == ABNF.OPCODE_CLOSE or not data:
            raise Unreachable(self._server, "the connection to the pod was closed")
        return data[0], data[1:]

    def _lost(self, error: Exception) -> Unreachable:
        return Unreachable(self._server, f"the connection to the pod broke: {str(error) or type(error).__name__}")


@contextmanager
def run(server: Server, pod_path: str, container: str, command: Sequence[str]) -> Iterator[Command]:
    """Start a command. Raises ApiError and Unreachable."""
    query = [("container", container), ("stdin", "true"), ("stdout", "true"), ("stderr", "true")]
    words = urlencode([*query, *(("command", word) for word in command)])
    url = f"{server.configuration.host.replace('http', 'ws', 1)}{pod_path}/exec?{words}"
    try:
        socket = create_websocket(  # type: ignore[no-untyped-call]
            server.configuration, url, server.headers() | {"sec-websocket-protocol": PROTOCOL}
        )
    except WebSocketBadStatusException as error:
        body = error.resp_body if isinstance(error.resp_body, bytes) else b""
        raise api_error(error.status_code, body) from None
    except (WebSocketException, OSError) as error:
        raise Unreachable(server.configuration.host, str(error)) from None
    with closing(socket):
        socket.settimeout(SILENCE_SECONDS)
        yield Command(socket, server.configuration.host)


def exit_code(ending: bytes) -> tuple[int, str]:
    """Exit code of a Status object (-1 where the command did not run), and what else it says."""
    status = json.loads(ending)
    if status.get("status") == "Success":
        return 0, ""
    causes = (status.get("details") or {}).get("causes") or ()
    code = next((c["message"] for c in causes if c.get("reason") == "ExitCode"), None)
    return (int(code), "") if code is not None else (-1, str(status.get("message") or ""))
