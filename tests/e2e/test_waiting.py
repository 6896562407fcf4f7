"""Pods that cannot run: the job says why, in the words of whoever refused."""

from __future__ import annotations

from builders import Json
from e2e.team import Team
from e2e.test_two_nodes import SPEC
from operating.team import condition, message

NOWHERE = "127.0.0.1:1/no/such:image"


def test_an_image_that_cannot_be_pulled_is_named(team: Team) -> None:
    pods: Json = {**SPEC["pods"], "image": NOWHERE}
    team.submit("unpulled", **(SPEC | {"pods": pods, "output": {"uri": "pvc://shared/unpulled"}}))
    said = team.until("unpulled", lambda status: "Pull" in message_of(status))
    assert condition(said, "PodsReady")[0] == "False"
    assert NOWHERE in message(said, "PodsReady")
    team.kubectl("delete", "finetunejob", "unpulled")
    team.pods(0)


def message_of(status: Json) -> str:
    return next((c["message"] for c in status.get("conditions", []) if c["type"] == "PodsReady"), "")
