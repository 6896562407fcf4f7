"""An HTTP client for huggingface_hub that continues what fails for a reason that may pass. Used by hub.py.

The library itself gives up after seconds, and begins an interrupted file again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx2

from .errors import SourceUnavailable
from .records import print_error
from .sources import Limits

_TRY_LATER, _SERVER_ERROR = (408, 425, 429), 500
"""HTTP status codes that say nothing about the request itself."""
_SILENCE_S = 60.0
"""How long an answer may take, where the library sets no limit."""
_DOUBLINGS = 5
"""The pauses between tries become no longer after this."""


class PatientClient(httpx2.Client):
    """Gives up when there was no success for as long as patience lasts. Its threads share that time."""

    def __init__(self, model: str, hooks: Any, limits: Limits) -> None:
        super().__init__(event_hooks=hooks, follow_redirects=True, timeout=None)
        self._model, self._limits = model, limits
        self._since: float | None = None
        """When the first of the latest failures was; None after a success."""

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Raises SourceUnavailable."""
        path = request.url.path
        if "/api/" in path and self._model.partition("@")[0] not in path:  # nothing that the model needs
            return super().send(request, **options)
        response = self._answer(request, **options)
        if options.get("stream") and "content-encoding" not in response.headers:
            response.stream = _Resumed(self, request, response.stream)
        else:
            self.succeeded()
        return response

    def rest(self, request: httpx2.Request, done: int) -> Any:
        """The stream of what `request` asks for, without the first `done` bytes."""
        begin = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0]) + done
        headers = request.headers.copy()
        headers["range"] = f"bytes={begin}-"
        again = httpx2.Request(request.method, request.url, headers=headers, extensions=request.extensions)
        response = self._answer(again, stream=True)
        if response.status_code == httpx2.codes.PARTIAL_CONTENT:
            return response.stream
        response.close()
        if response.is_error:  # links to storage hosts are not valid for ever
            raise SourceUnavailable(
                f"model {self._model}: {response.status_code} {response.reason_phrase} for the rest "
                "of a file; the next run begins this file again"
            )
        raise httpx2.RemoteProtocolError("this server has no parts of files")  # the library begins the file again

    def succeeded(self) -> None:
        self._since = None

    def wait(self, trouble: httpx2.TransportError | str, tries: int, at_least: float = 0.0) -> None:
        """Before one more try. Raises SourceUnavailable if that would be too late."""
        longest = self._limits.pause * 2 ** min(tries, _DOUBLINGS)
        pause = max(at_least, longest * random.uniform(0.5, 1))  # noqa: S311 - so that nodes do not try all at once
        self._since = self._since or time.monotonic()
        reason = f"model {self._model}: the Hub cannot be used now: {str(trouble) or type(trouble).__name__}"
        if time.monotonic() + pause - self._since > self._limits.patience:
            raise SourceUnavailable(
                f"{reason}; check the network and HF_ENDPOINT, set a token (HF_TOKEN) if it limits the rate, or use "
                "a folder as model"
            )
        print_error(f"{reason}; the next try is in {pause:.1f} s")
        time.sleep(pause)

    def _answer(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        limits = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {name: limit or _SILENCE_S for name, limit in limits.items()}
        for tries in count():
            try:
                response = super().send(request, **options)
            except httpx2.UnsupportedProtocol:  # of a URL that is none
                raise
            except httpx2.TransportError as error:
                self.wait(error, tries)
                continue
            if response.status_code < _SERVER_ERROR and response.status_code not in _TRY_LATER:
                return response
            response.close()
            asked = response.headers.get("retry-after", "")
            pause = float(asked) if asked.isdecimal() else 0.0
            self.wait(f"{response.status_code} {response.reason_phrase}", tries, pause)
        raise AssertionError("it counts for ever")


class _Resumed(httpx2.SyncByteStream):
    """The body of an answer; where its transfer breaks off, the rest is asked for."""

    def __init__(self, client: PatientClient, request: httpx2.Request, stream: Any) -> None:
        self._client, self._request, self._stream = client, request, stream

    def __iter__(self) -> Iterator[bytes]:
        done = tries = 0
        while True:
            try:
                for part in self._stream:
                    done, tries = done + len(part), 0
                    self._client.succeeded()
                    yield part
            except httpx2.TransportError as error:
                self.close()
                self._client.wait(error, tries)
                tries += 1
                self._stream = self._client.rest(self._request, done)
            else:
                return

    def close(self) -> None:
        self._stream.close()
