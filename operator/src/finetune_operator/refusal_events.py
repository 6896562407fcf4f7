"""What Kubernetes said when it refused the pods of a run.

The backend's controller tells it in Events of one reason and nowhere else; a watch of just these fills this
(handlers.py), observe.py asks.
"""

from __future__ import annotations

from finetune_api.resource import names
from finetune_plan.backends.protocol import Backend

from .identity import Json, Key


class RefusalEvents:
    """The last refusal by the UID of the run that it is about."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._messages: dict[str, str] = {}

    def on_event(self, change: str | None, event: Json) -> Key | None:
        """Take an Event as a watch tells it; the job that it is about, or None if it is about no run."""
        run = self._backend.refused_run(event)
        if run is None or not (job := names.job_of_run(run.name)):
            return None
        if change == "DELETED":
            self._messages.pop(run.uid, None)
        else:
            self._messages[run.uid] = event.get("message", "")
        return Key(event["metadata"]["namespace"], job)

    def of(self, uid: str) -> str:
        """What was said last about a run; empty if nothing was."""
        return self._messages.get(uid, "")

    def keep(self, uids: set[str]) -> None:
        """Forget all other runs."""
        self._messages = {uid: said for uid, said in self._messages.items() if uid in uids}
