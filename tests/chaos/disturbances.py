"""What may happen at a write: each disturbance is a lens that bends what the operator is told from there on.

Views that lag are the API server's own: a list is asked for as of the version before the write.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from builders import Json
from operating.proxy import Failure, Lens, Place, is_counted

LATE_S = 10.0
NOWHERE = Place(0, 0)
REFUSING_S = 3.0
"""As long as all attempts of one request take: some are given up, others are not."""


class Disturbance(Lens):
    """Strikes at the write of a place. `struck` is set then; `calm` comes when its effect is over."""

    kills = False
    loses = False
    """Whether the answer to the write is lost although the operator lives."""
    settings: Mapping[str, str] = MappingProxyType({"RESYNC_SECONDS": "300"})
    """Of the operator; no resync heals what a watch should."""

    def __init__(self, at: Place = NOWHERE) -> None:
        self._at = at
        self._version = 0
        """Of the object that was written."""
        self._uid = ""
        self.struck = threading.Event()
        self.kill: Callable[[], None] = lambda: None

    def wrote(self, at: Place, answer: Json) -> bool:
        if self.struck.is_set():
            return False
        metadata = answer["metadata"]
        # An object that is gone at once comes without a version.
        self._version = int(metadata.get("resourceVersion", self._version + 1))
        self._uid = metadata.get("uid", "")
        if at != self._at:
            return False
        if self.kills:
            self.kill()
        self.struck.set()
        return self.kills or self.loses

    def calm(self) -> None:
        """Return once the operator is told everything again."""


class Killed(Disturbance):
    """The operator dies before it hears the answer; its successor starts."""

    kills = True


class Late(Disturbance):
    """What happens is told 10 s late, in order; lists are as old."""

    kinds: frozenset[str] = frozenset({"finetunejobs", "pytorchjobs", "pods"})
    _until: float | None = None

    def wrote(self, at: Place, answer: Json) -> bool:
        lost = super().wrote(at, answer)
        if self.struck.is_set() and not self.kills:
            self._begin()
        return lost

    def listed(self, kind: str) -> Mapping[str, str]:
        if not self._lags(kind):
            return {}
        return {"resourceVersion": str(self._version - 1), "resourceVersionMatch": "Exact"}

    async def told(self, kind: str, opened: float, event: Json) -> Json | None:
        if self._lags(kind):
            await asyncio.sleep(max(0.0, self._begin() - time.monotonic()))
        return event

    def calm(self) -> None:
        time.sleep(max(0.0, self._begin() - time.monotonic()))

    def _lags(self, kind: str) -> bool:
        return kind in self.kinds and self.struck.is_set() and time.monotonic() < self._begin()

    def _begin(self) -> float:
        """The end of the lag, which begins when somebody looks for the first time."""
        if self._until is None:
            self._until = time.monotonic() + LATE_S
        return self._until


class KilledAndLate(Late):
    """The operator dies, and its successor is told 10 s late of the children; jobs it sees as they are.

    Every kind has a watch of its own, so one may lag behind the other.
    """

    kills = True
    kinds = frozenset({"pytorchjobs", "pods"})


class Dropped(Disturbance):
    """The echo of the write is never told, nor the end that it brings about; where it has none, the next event."""

    settings = MappingProxyType({"RESYNC_SECONDS": "6"})
    """What was never told is found by the resync alone; a fifth of its time in production."""
    _dropped = False

    async def told(self, kind: str, opened: float, event: Json) -> Json | None:
        if not self.struck.is_set() or event["type"] == "BOOKMARK" or kind == "leases":
            return event
        metadata = event["object"]["metadata"]
        echo = int(metadata["resourceVersion"]) == self._version
        end = event["type"] == "DELETED" and metadata["uid"] == self._uid
        first = not self._dropped and int(metadata["resourceVersion"]) > self._version
        self._dropped = self._dropped or echo or first
        return None if echo or end or first else event


class Refusing(Disturbance):
    """For a few seconds the server answers nothing but watches, and asks the operator to come back."""

    failure = Failure(429, {"Retry-After": "1"})
    _until = 0.0

    def wrote(self, at: Place, answer: Json) -> bool:
        lost = super().wrote(at, answer)
        if self.struck.is_set() and not self._until:
            self._until = time.monotonic() + REFUSING_S
        return lost

    def fails(self, path: str) -> Failure | None:
        return self.failure if time.monotonic() < self._until else None

    def calm(self) -> None:
        time.sleep(max(0.0, self._until - time.monotonic()))


class Erring(Refusing):
    """The write is carried out and answered with 500, and so is everything else for a few seconds."""

    loses = True
    failure = Failure(500)


class TimedOut(Disturbance):
    """The write is carried out and never answered; the next one never reaches the server."""

    loses = True
    settings = MappingProxyType({"RESYNC_SECONDS": "300", "REQUEST_TIMEOUT_SECONDS": "2"})
    _held = False

    async def stall(self) -> None:
        await asyncio.Event().wait()

    def holds(self, method: str, path: str) -> bool:
        held = self.struck.is_set() and not self._held and is_counted(method, path)
        self._held = self._held or held
        return held


class SilentLogs(Disturbance):
    """Logs are asked for and never answered."""

    def holds(self, method: str, path: str) -> bool:
        return self.struck.is_set() and path.endswith("/log")


class Gone(Disturbance):
    """Every third event is lost: its stream ends with "410 Gone" in its place."""

    _told = 0

    async def told(self, kind: str, opened: float, event: Json) -> Json | None:
        self._told += event["type"] != "BOOKMARK" and kind != "leases"
        if self._told < 3:
            return event
        self._told = 0
        self.struck.set()
        return failure(410)


class Silent(Lens):
    """Streams say nothing more from a moment on and stay open; those that are opened later speak."""

    def __init__(self) -> None:
        self.since = float("inf")

    async def told(self, kind: str, opened: float, event: Json) -> Json | None:
        if opened < self.since <= time.monotonic():
            await asyncio.Event().wait()
        return event


class Broken(Lens):
    """Once, from a moment on, the next event is an error of the server."""

    def __init__(self) -> None:
        self.now = threading.Event()

    async def told(self, kind: str, opened: float, event: Json) -> Json | None:
        if not self.now.is_set():
            return event
        self.now.clear()
        return failure(500)


def failure(code: int) -> Json:
    """The event with which the API server ends a watch."""
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "too bad"}
    return {"type": "ERROR", "object": status}


DISTURBANCES: Mapping[str, type[Disturbance]] = {
    "killed": Killed, "delayed": Late, "dropped": Dropped, "killed-and-delayed": KilledAndLate,
    "answered-429": Refusing, "answered-500": Erring, "timed-out": TimedOut, "logs-silent": SilentLogs,
}  # fmt: skip
