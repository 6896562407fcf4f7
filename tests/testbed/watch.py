"""Waiting for the cluster to reach a state: list, then watch, and ask a predicate after every change.

Called by tests and by the pieces that must wait for each other. A wait that is not fulfilled fails with the
last state seen, so that the test's output says what was there instead.
"""

import json
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from typing import Any

from testbed.api import Api, ApiError, Json

# A watch is opened anew this often, so that one that went silent cannot make a wait miss the state.
WATCH_S = 20
PATIENCE_S = 180.0
"""A wait ends here, on a machine with many other things to do. What has not come by then never will."""


class WaitError(Exception):
    """What was waited for did not come in time; the message shows the last state seen."""


def wait_for(
    api: Api, path: str, until: Callable[[Json | None], Any], *, timeout_s: float = PATIENCE_S
) -> Json | None:
    """Wait until `until(object)` is true for the object at a path (None: it is not there), and return it."""
    collection, _, name = path.rpartition("/")
    selector = f"metadata.name={name}"

    def one(items: list[Json]) -> Any:
        return until(items[0] if items else None)

    items = wait_for_all(api, collection, one, timeout_s=timeout_s, fieldSelector=selector)
    return items[0] if items else None


def wait_for_all(
    api: Api, path: str, until: Callable[[list[Json]], Any], *, timeout_s: float = PATIENCE_S, **query: str
) -> list[Json]:
    """Wait until `until(items)` is true for the items of a collection, and return them. query: selectors."""
    items: list[Json] = []
    for items in states(api, path, timeout_s=timeout_s, **query):
        if until(items):
            return items
    last = json.dumps([_brief(item) for item in items], indent=1)
    raise WaitError(f"not seen within {timeout_s:.0f} s at {path} {query or ''}; last state:\n{last}")


def states(api: Api, path: str, *, timeout_s: float, **query: str) -> Iterator[list[Json]]:
    """The items of a collection, now and after every change, until the time is over."""
    give_up = time.monotonic() + timeout_s
    while True:
        listed = api.get(path, **query)
        held = {item["metadata"]["uid"]: item for item in listed["items"]}
        yield list(held.values())
        left = give_up - time.monotonic()
        if left <= 0:
            return
        version = listed["metadata"]["resourceVersion"]
        for event in _events(api, path, version, min(left, WATCH_S), query):
            _take(held, event)
            yield list(held.values())


def _events(api: Api, path: str, version: str, seconds: float, query: dict[str, str]) -> Iterator[Json]:
    """The events of one watch; ends when the server, or the time, ends it: the caller lists again."""
    query = query | {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(max(1, round(seconds)))}
    try:
        with api.stream(path, timeout_s=seconds + 5, **query) as response:
            for line in response:
                event: Json = json.loads(line)
                if event["type"] == "ERROR":  # mostly 410: our version is too old
                    return
                yield event
    except (OSError, HTTPException, ApiError):
        return


def _take(held: dict[str, Json], event: Json) -> None:
    uid = event["object"]["metadata"]["uid"]
    if event["type"] == "DELETED":
        held.pop(uid, None)
    else:
        held[uid] = event["object"]


def _brief(item: Json) -> Json:
    name = item["metadata"]["name"]
    return {"name": name, "status": item.get("status"), "deleting": "deletionTimestamp" in item["metadata"]}
