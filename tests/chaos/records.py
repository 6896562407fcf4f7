"""What really happened: the audit log, and a watch of PyTorchJobs that nobody disturbs."""

from __future__ import annotations

import json
import threading
import time
from http.client import HTTPException

from builders import Json
from testbed.api import Api, ApiError
from testbed.control_plane import ControlPlane

WRITES = ("create", "update", "patch", "delete")
UNCOUNTED = ("leases", "events")
"""When they come depends on the clock, and nothing depends on them."""


def writes(plane: ControlPlane, namespace: str) -> list[Json]:
    """What the operator wrote in a namespace, heartbeats and Events apart, from the audit log in the order of the
    answers."""
    assert plane.audit_log is not None
    mark = f'"namespace":"{namespace}"'
    with plane.audit_log.open() as lines:
        entries = [json.loads(line) for line in lines if mark in line]
    return [e for e in entries if e["verb"] in WRITES and _is_ours(e) and _is_done(e)]


def word(entry: Json) -> str:
    """A write in short, such as patch-finetunejobs/status."""
    about = entry["objectRef"]
    return "-".join([entry["verb"], "/".join(filter(None, (about["resource"], about.get("subresource"))))])


def created_runs(entries: list[Json]) -> list[str]:
    """Names of the PyTorchJobs that were created."""
    return [e["objectRef"]["name"] for e in entries if word(e) == "create-pytorchjobs"]


def _is_ours(entry: Json) -> bool:
    return entry.get("userAgent") == "finetune-operator" and entry["objectRef"]["resource"] not in UNCOUNTED


def _is_done(entry: Json) -> bool:
    """As the proxy counts."""
    return bool(entry["responseStatus"]["code"] < 400)


class Ledger:
    """Beginnings and ends of PyTorchJobs, of all namespaces, in the order in which they came about."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._entries: list[tuple[str, str, str]] = []
        self._news, self._stopped = threading.Condition(), False
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True

    def runs(self, namespace: str, created: int) -> list[str]:
        """`+name` for each beginning and `-name` for each end, once so many have begun and all have ended."""
        with self._news:
            self._news.wait_for(lambda: self._of(namespace, "+") == self._of(namespace, "-") >= created, 30)
            return [f"{sign}{name}" for space, sign, name in self._entries if space == namespace]

    def _of(self, namespace: str, sign: str) -> int:
        return sum(entry[:2] == (namespace, sign) for entry in self._entries)

    def _keep(self) -> None:
        path = "/apis/kubeflow.org/v1/pytorchjobs"
        version = self._api.get(path)["metadata"]["resourceVersion"]
        while not self._stopped:
            query = {"watch": "true", "timeoutSeconds": "20", "resourceVersion": version}
            try:
                with self._api.stream(path, timeout_s=30, **query) as lines:
                    for line in lines:
                        version = self._note(json.loads(line))
            except (OSError, HTTPException, ApiError):
                time.sleep(0.2)

    def _note(self, event: Json) -> str:
        metadata = event["object"]["metadata"]
        sign = {"ADDED": "+", "DELETED": "-"}.get(event["type"])
        if sign:
            with self._news:
                self._entries.append((metadata["namespace"], sign, metadata["name"]))
                self._news.notify_all()
        version: str = metadata["resourceVersion"]
        return version
