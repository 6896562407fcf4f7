"""What a collection holds, now and after every change: list, watch, and list anew when the watch breaks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping

from .errors import ApiError, NotFound, UnknownResource, Unreachable
from .server import Json, Server

WATCH_SECONDS = 240
SILENCE_SECONDS = 90.0
"""Longest silence of a watch that is believed: the server sends bookmarks about every minute."""
PATIENCE_SECONDS = 300.0
"""How long an API server may be away before we give up."""
PAUSE_SECONDS = 1.0


def states(
    server: Server, path: str, query: Mapping[str, str], *, seconds: float | None = None,
    lost: Callable[[str], None] = lambda _: None,
) -> Iterator[list[Json]]:  # fmt: skip
    """The items of a collection, each time that they may have changed, for ever or for so many seconds.

    `lost` hears once of each time that the server cannot be reached. Raises ApiError, and Unreachable if the
    server stays away.
    """
    end = None if seconds is None else time.monotonic() + seconds
    away: float | None = None
    while True:
        try:
            for items in _watched(server, path, query, end):
                away = None
                yield items
        except (Unreachable, ApiError) as error:
            if isinstance(error, ApiError) and not _passes(error):
                raise
            if away is None:
                lost(str(error))
            away = away or time.monotonic()
            if time.monotonic() - away > PATIENCE_SECONDS:
                raise
            time.sleep(PAUSE_SECONDS)
        if end is not None and time.monotonic() >= end:
            return


def _watched(server: Server, path: str, query: Mapping[str, str], end: float | None) -> Iterator[list[Json]]:
    """One list and one watch."""
    listed = server.request("GET", path, query=query)
    held = {item["metadata"]["uid"]: item for item in listed["items"]}
    yield list(held.values())
    left = WATCH_SECONDS if end is None else min(WATCH_SECONDS, end - time.monotonic())
    if left <= 0:
        return
    more = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(max(1, round(left))),
            "resourceVersion": listed["metadata"]["resourceVersion"]}  # fmt: skip
    with server.lines(path, {**query, **more}, SILENCE_SECONDS) as lines:
        for line in lines:
            event = json.loads(line)
            if event["type"] == "ERROR":
                if event["object"].get("code") == 410:  # our version is too old: list anew
                    return
                raise ApiError(event["object"].get("code") or 500, "", event["object"].get("message") or "")
            if event["type"] != "BOOKMARK":
                _take(held, event)
                yield list(held.values())


def _take(held: dict[str, Json], event: Json) -> None:
    uid = event["object"]["metadata"]["uid"]
    if event["type"] == "DELETED":
        held.pop(uid, None)
    else:
        held[uid] = event["object"]


def _passes(error: ApiError) -> bool:
    """Whether the error may go away by itself: the server is starting, or has too much to do."""
    return not isinstance(error, (NotFound, UnknownResource)) and (error.status == 429 or error.status >= 500)
