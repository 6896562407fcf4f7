"""Runs a command in a container of a pod: bytes in, bytes out, and its exit code (channel protocol v4).

v4 cannot close standard input, so the commands know the number of bytes in advance. The first byte of each frame is
its channel: 0 stdin, 1 stdout, 2 stderr, 3 the final Status object. Why this is not the official client's WSClient:
docs/adr/0020-own-exec-stream.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from urllib.parse import urlencode

from kubernetes.stream.ws_client import create_websocket
from websocket import ABNF, WebSocket, WebSocketBadStatusException, WebSocketException

from .api_client import ApiClient
from .errors import Unreachable, api_error

PROTOCOL = "v4.channel.k8s.io"
STDIN, STDOUT, STDERR, STATUS = range(4)
READ_SECONDS = 120.0
"""Longest time without a frame while one is expected."""


class Command:
    """A running command."""

    def __init__(self, socket: WebSocket, server: str) -> None:
        self._socket, self._server = socket, server
        self.code: int | None = None
        """Exit code, once stdout() has ended; -1 if the command could not be run."""
        self.stderr = ""

    def write(self, data: bytes) -> None:
        """Write to standard input. Raises Unreachable."""
        try:
            self._socket.send_binary(bytes([STDIN]) + data)
        except (WebSocketException, OSError) as error:
            raise self._lost(error) from None

    def stdout(self) -> Iterator[bytes]:
        """Standard output as it arrives, to its end. Raises Unreachable if the connection breaks first."""
        while True:
            channel, data = self._frame()
            if channel == STDOUT:
                if data:
                    yield data
            elif channel == STDERR:
                self.stderr += data.decode(errors="replace")
            elif channel == STATUS:
                self.code, message = exit_code(data)
                self.stderr += message
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
def run(client: ApiClient, pod_path: str, container: str, command: Sequence[str]) -> Iterator[Command]:
    """Start a command. Raises ApiError and Unreachable."""
    query = [("container", container), ("stdin", "true"), ("stdout", "true"), ("stderr", "true")]
    encoded = urlencode([*query, *(("command", argument) for argument in command)])
    url = f"{client.configuration.host.replace('http', 'ws', 1)}{pod_path}/exec?{encoded}"
    try:
        socket = create_websocket(  # type: ignore[no-untyped-call]
            client.configuration, url, client.headers() | {"sec-websocket-protocol": PROTOCOL}
        )
    except WebSocketBadStatusException as error:
        body = error.resp_body if isinstance(error.resp_body, bytes) else b""
        raise api_error(error.status_code, body) from None
    except (WebSocketException, OSError) as error:
        raise Unreachable(client.configuration.host, str(error)) from None
    with closing(socket):
        socket.settimeout(READ_SECONDS)
        yield Command(socket, client.configuration.host)


def exit_code(body: bytes) -> tuple[int, str]:
    """Exit code of a Status object, and its message if the command could not be run (-1)."""
    status = json.loads(body)
    if status.get("status") == "Success":
        return 0, ""
    causes = (status.get("details") or {}).get("causes") or ()
    code = next((c["message"] for c in causes if c.get("reason") == "ExitCode"), None)
    return (int(code), "") if code is not None else (-1, str(status.get("message") or ""))
