"""The items of a collection, now and after every change: list, watch, and list again when the watch breaks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping

from finetune_kube.failures import FailureKind

from .api_client import ApiClient, Json
from .errors import Unavailable, Unreachable, api_error

WATCH_SECONDS = 240
READ_SECONDS = 90.0
"""A watch without data for so long is broken: the server sends a bookmark about every minute."""
GIVE_UP_SECONDS = 300.0
"""How long the API server may be unreachable."""
PAUSE_SECONDS = 1.0


def list_and_watch(
    client: ApiClient, path: str, query: Mapping[str, str], *, seconds: float | None = None,
    on_lost: Callable[[str], None] = lambda _: None,
) -> Iterator[list[Json]]:  # fmt: skip
    """The items of a collection, each time that they may have changed; without end, or for `seconds`.

    `on_lost` is called once for each outage. Raises ApiError, and Unreachable if the outage lasts.
    """
    end = None if seconds is None else time.monotonic() + seconds
    lost_at: float | None = None
    while True:
        try:
            for items in _watch_once(client, path, query, end):
                lost_at = None
                yield items
        except (Unreachable, Unavailable) as error:
            if lost_at is None:
                on_lost(str(error))
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > GIVE_UP_SECONDS:
                raise
            time.sleep(PAUSE_SECONDS)
        if end is not None and time.monotonic() >= end:
            return


def _watch_once(
    client: ApiClient, path: str, query: Mapping[str, str], end: float | None
) -> Iterator[list[Json]]:  # fmt: skip
    """One list and one watch."""
    listed = client.request("GET", path, query=query)
    items = {item["metadata"]["uid"]: item for item in listed["items"]}
    yield list(items.values())
    left = WATCH_SECONDS if end is None else min(WATCH_SECONDS, end - time.monotonic())
    if left <= 0:
        return
    more = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(max(1, round(left))),
            "resourceVersion": listed["metadata"]["resourceVersion"]}  # fmt: skip
    with client.stream(path, {**query, **more}, READ_SECONDS) as lines:
        for event in map(json.loads, lines):
            if event["type"] == "ERROR":
                error = api_error(event["object"].get("code") or 500, json.dumps(event["object"]).encode())
                if error.kind is FailureKind.EXPIRED:  # the resource version is too old: list again
                    return
                raise error
            if event["type"] != "BOOKMARK":
                _update(items, event)
                yield list(items.values())


def _update(items: dict[str, Json], event: Json) -> None:
    uid = event["object"]["metadata"]["uid"]
    if event["type"] == "DELETED":
        items.pop(uid, None)
    else:
        items[uid] = event["object"]
