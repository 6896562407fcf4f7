"""Why the API server refused the pods of a run.

The Training Operator reports it in Events of one reason and nowhere else. A watch of these Events fills this store
(handlers.py); observe.py reads it.
"""

from __future__ import annotations

from .identity import Json, Key

REASON = "FailedCreatePod"
"""Reason of the Training Operator's Events about a pod that it could not create."""


class RefusalEvents:
    """The last refusal, by the UID of the PyTorchJob."""

    def __init__(self) -> None:
        self._messages: dict[str, str] = {}

    def on_event(self, change: str | None, event: Json) -> Key | None:
        """Record an Event; returns the job that it is about, or None if it is not about a PyTorchJob."""
        about = event["involvedObject"]
        job = about.get("name", "").rpartition("-")[0]
        if about.get("kind") != "PyTorchJob" or not job:
            return None
        if change == "DELETED":
            self._messages.pop(about["uid"], None)
        else:
            self._messages[about["uid"]] = event.get("message", "")
        return Key(about["namespace"], job)

    def of(self, uid: str) -> str:
        """The last refusal of a run; empty if there was none."""
        return self._messages.get(uid, "")

    def keep(self, uids: set[str]) -> None:
        """Forget all other runs."""
        self._messages = {uid: said for uid, said in self._messages.items() if uid in uids}
