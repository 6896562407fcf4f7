"""From two statuses of a job to the records and messages that a local run would have shown in between. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.resource import conditions as c
from finetune_api.runtime.report import EvaluationRecord, ProgressRecord, Record
from finetune_api.validation.predicates import find

from .api_client import Json
from .views import condition, has_ended

FINAL_CONDITIONS = {c.READY, c.COMPLETE, c.FAILED}
"""Conditions that are reported when the job has ended."""


def status_diff(before: Json, after: Json) -> Iterator[Record | str]:
    """Records and messages, in the order in which a run produces them."""
    yield from _condition_changes(before, after)
    new, old = find(after, "status.progress") or {}, find(before, "status.progress") or {}
    if new.get("step") is not None and new["step"] != old.get("step"):
        yield _progress(new)
    if new.get("evalLoss") is not None and new["evalLoss"] != old.get("evalLoss"):
        yield EvaluationRecord(time=0, step=new.get("step") or 0, loss=new["evalLoss"], rows=0, best=False)
    if new.get("checkpointStep") is not None and new["checkpointStep"] != old.get("checkpointStep"):
        yield f"checkpoint at step {new['checkpointStep']} saved"


def _condition_changes(before: Json, after: Json) -> Iterator[str]:
    """Conditions with a new status or message. New conditions only if they are True, or PodsReady."""
    for each in () if has_ended(after) else find(after, "status.conditions") or ():
        old = condition(before, each["type"])
        known = (
            (old["status"], old["message"]) == (each["status"], each["message"]) if old else each["status"] != "True"
        )
        if each["type"] not in FINAL_CONDITIONS and (not known or (old is None and each["type"] == c.PODS_READY)):
            yield f"{each['type']}: {each['message']}"


def _progress(progress: Json) -> ProgressRecord:
    return ProgressRecord(
        time=0, step=progress["step"], total_steps=progress.get("totalSteps") or 0,
        epoch=progress.get("epoch") or 0.0, loss=progress.get("loss"),
        learning_rate=progress.get("learningRate") or 0.0, grad_norm=progress.get("gradNorm"),
        tokens_per_second=progress.get("tokensPerSecond"), eta_seconds=progress.get("etaSeconds"),
    )  # fmt: skip
