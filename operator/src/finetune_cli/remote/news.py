"""From two statuses of a job to what has happened in between, in the records and words of a local run. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.resource import conditions as c
from finetune_api.runtime.report import EvaluationRecord, ProgressRecord, Record
from finetune_api.validation.predicates import find

from .server import Json
from .views import condition, ended

LAST_WORDS = {c.READY, c.COMPLETE, c.FAILED}
"""Conditions that are told when the job is over."""


def news(before: Json, after: Json) -> Iterator[Record | str]:
    """Records and sentences, in the order in which a run makes them."""
    yield from _said(before, after)
    new, old = find(after, "status.progress") or {}, find(before, "status.progress") or {}
    if new.get("step") is not None and new["step"] != old.get("step"):
        yield _progress(new)
    if new.get("evalLoss") is not None and new["evalLoss"] != old.get("evalLoss"):
        yield EvaluationRecord(time=0, step=new.get("step") or 0, loss=new["evalLoss"], rows=0, best=False)
    if new.get("checkpointStep") is not None and new["checkpointStep"] != old.get("checkpointStep"):
        yield f"checkpoint of step {new['checkpointStep']}"


def _said(before: Json, after: Json) -> Iterator[str]:
    """Conditions whose answer or sentence has changed; of those never told before only what is true, or awaited."""
    for each in () if ended(after) else find(after, "status.conditions") or ():
        old = condition(before, each["type"])
        known = (
            (old["status"], old["message"]) == (each["status"], each["message"]) if old else each["status"] != "True"
        )
        if each["type"] not in LAST_WORDS and (not known or (old is None and each["type"] == c.PODS_READY)):
            yield f"{each['type']}: {each['message']}"


def _progress(progress: Json) -> ProgressRecord:
    return ProgressRecord(
        time=0, step=progress["step"], total_steps=progress.get("totalSteps") or 0,
        epoch=progress.get("epoch") or 0.0, loss=progress.get("loss"),
        learning_rate=progress.get("learningRate") or 0.0, grad_norm=progress.get("gradNorm"),
        tokens_per_second=progress.get("tokensPerSecond"), eta_seconds=progress.get("etaSeconds"),
    )  # fmt: skip
