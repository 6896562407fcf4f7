"""Why the API server refused the pods of a run.

The backend's controller reports it in Events of one reason and nowhere else. A watch of these Events fills this store
(handlers.py); observe.py reads it.
"""

from __future__ import annotations

from finetune_api.resource import names
from finetune_plan.backends.protocol import Backend

from .identity import Json, Key


class RefusalEvents:
    """The last refusal, by the UID of the run."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._messages: dict[str, str] = {}

    def on_event(self, change: str | None, event: Json) -> Key | None:
        """Record an Event; returns the job that it is about, or None if it is not about a run."""
        run = self._backend.refused_run(event)
        if run is None or not (job := names.job_of_run(run.name)):
            return None
        if change == "DELETED":
            self._messages.pop(run.uid, None)
        else:
            self._messages[run.uid] = event.get("message", "")
        return Key(event["metadata"]["namespace"], job)

    def of(self, uid: str) -> str:
        """The last refusal of a run; empty if there was none."""
        return self._messages.get(uid, "")

    def keep(self, uids: set[str]) -> None:
        """Forget all other runs."""
        self._messages = {uid: message for uid, message in self._messages.items() if uid in uids}
