"""Situations of a job in short words, and what the plan makes of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from builders import Json, resource
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import Cause, FinalReport
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.decide import plan
from finetune_plan.model import CreateRun, DeleteRun, Observed, ObservedPod, ObservedRun, Plan
from finetune_plan.settings import PlanSettings

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
RUN1 = (ObservedRun("sample-1", 1),)


def seen(changes: Json | None = None, status: Json | None = None, **parts: Any) -> Observed:
    body = resource({"compute.nodes": 2, "network.profile": "tcp", **(changes or {})})
    body["metadata"] |= {"uid": "u-1", "namespace": "team", "generation": 3}
    return Observed(body | ({"status": status} if status else {}), **parts)


def decided(observed: Observed) -> Plan:
    """What is done now. Restarts do not wait here; how long they do is in test_restarts.py."""
    return plan(observed, PlanSettings(backoff_seconds=0), NOW, BACKEND)


def created(answer: Plan) -> list[str]:
    return [a.manifest["metadata"]["name"] for a in answer.actions if isinstance(a, CreateRun)]


def deleted(answer: Plan) -> list[str]:
    return [a.name for a in answer.actions if isinstance(a, DeleteRun)]


def condition(answer: Plan, kind: str) -> tuple[str, str]:
    return next((c.status.value, c.reason) for c in answer.status.conditions or () if c.type == kind)


def accepted(**more: Any) -> Json:
    """The status as written after the first run was created."""
    status = decided(seen()).status.model_dump(mode="json", exclude_none=True)
    return status | more


def pod(rank: int, phase: str = "Running", **more: Any) -> ObservedPod:
    return ObservedPod(f"sample-1-{rank}", f"uid-{rank}", 1, rank, phase, **more)


def ended(rank: int, code: Exit, *, at: float = 10.0, message: str = "why", cause: bool = True) -> ObservedPod:
    blamed = Cause(rank=rank, node=rank, time=at, error=message) if cause and code else None
    report = FinalReport(time=at, exit_code=code, reason="x", message=message, step=7, result="/out/result",
                         digest="sha256:1", metrics={"train.loss": 2.25, "val.loss": 1.5}, cause=blamed)  # fmt: skip
    return pod(rank, "Succeeded" if code == Exit.OK else "Failed", exit_code=int(code), report=report)


def written(answer: Plan) -> Json:
    """The status as the API server gives it back."""
    return answer.status.model_dump(mode="json", exclude_none=True)
