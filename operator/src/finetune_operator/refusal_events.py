"""What Kubernetes said when it refused the pods of a run.

The Training Operator tells it in Events of one reason and nowhere else; a watch of just these fills this
(handlers.py), observe.py asks.
"""

from __future__ import annotations

from .identity import Json, Key

REASON = "FailedCreatePod"
"""Reason of the Training Operator's Events about a pod that it could not create."""


class RefusalEvents:
    """The last refusal by the UID of the PyTorchJob that it is about."""

    def __init__(self) -> None:
        self._messages: dict[str, str] = {}

    def on_event(self, change: str | None, event: Json) -> Key | None:
        """Take an Event as a watch tells it; the job that it is about, or None if it is about no PyTorchJob."""
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
        """What was said last about a run; empty if nothing was."""
        return self._messages.get(uid, "")

    def keep(self, uids: set[str]) -> None:
        """Forget all other runs."""
        self._messages = {uid: said for uid, said in self._messages.items() if uid in uids}
