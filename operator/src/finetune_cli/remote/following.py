"""Follows a job to its end, for `finetune watch` and `submit --wait`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing

import click

from finetune_api.resource import conditions as c
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import EvaluationRecord, FinalReport, ProgressRecord, Record
from finetune_api.validation.predicates import find
from finetune_cli import exit_codes
from finetune_cli.errors import CommandError, printable
from finetune_cli.local import display, summary
from finetune_cli.local.display import Display
from finetune_cli.local.outcome import Outcome

from .api_client import Json
from .cluster import ClusterClient
from .errors import failed, invalid
from .views import condition, condition_is_true, has_ended, parse_time

FINAL_CONDITIONS = {c.READY, c.COMPLETE, c.FAILED}
"""Conditions that are reported when the job has ended."""


def follow(cluster: ClusterClient, name: str, *, quiet: bool = False) -> Json:
    """Show the progress of a job; return the job when it has succeeded. Raises CommandError if it has not."""
    job, records = cluster.job(name), list[Record]()
    try:
        with closing(display.choose(quiet=quiet)) as view:
            job = _to_end(cluster, job, view, records)
    except KeyboardInterrupt:
        click.echo(f"The job is still running. To watch it: finetune watch {name} -n {cluster.namespace}", err=True)
        sys.exit(exit_codes.INTERRUPTED)
    if error := failure(job):
        raise error
    if not quiet:
        merged = bool(find(job, "spec.output.merge"))
        click.echo(summary.succeeded(_outcome(job), records, _seconds(job), merged=merged))
    return job


def failure(job: Json) -> CommandError | None:
    """Why a job failed or is refused; None if neither is the case."""
    path = f"finetunejob {job['metadata']['name']}"
    found = condition(job, c.FAILED)
    if has_ended(job) and found and found["status"] == "True":
        remedy = f"`finetune logs {job['metadata']['name']}` shows the logs of its pods."
        return failed(path, found["reason"], found["message"], remedy)
    accepted = condition(job, c.ACCEPTED)
    generation = job["metadata"]["generation"]
    is_current = find(job, "status.observedGeneration") in (None, generation)
    if not has_ended(job) and accepted and accepted["status"] == "False" and is_current:
        remedy = "Correct the job: delete it and submit it again, or `kubectl apply` the corrected file."
        return invalid(path, accepted["reason"], accepted["message"], remedy)
    return None


def has_succeeded(job: Json) -> bool:
    return has_ended(job) and condition_is_true(job, c.COMPLETE)


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
    """Conditions with a new status or message. New conditions only if they are not False, or PodsReady."""
    for each in () if has_ended(after) else find(after, "status.conditions") or ():
        old = condition(before, each["type"])
        known = (
            (old["status"], old["message"]) == (each["status"], each["message"]) if old else each["status"] == "False"
        )
        if each["type"] not in FINAL_CONDITIONS and (not known or (old is None and each["type"] == c.PODS_READY)):
            yield printable(f"{each['type']}: {each['message']}")


def _progress(progress: Json) -> ProgressRecord:
    return ProgressRecord(
        time=0, step=progress["step"], total_steps=progress.get("totalSteps") or 0,
        epoch=progress.get("epoch") or 0.0, loss=progress.get("loss"),
        learning_rate=progress.get("learningRate") or 0.0, grad_norm=progress.get("gradNorm"),
        tokens_per_second=progress.get("tokensPerSecond"), eta_seconds=progress.get("etaSeconds"),
    )  # fmt: skip


def _to_end(cluster: ClusterClient, job: Json, view: Display, records: list[Record]) -> Json:
    name, uid, last = job["metadata"]["name"], job["metadata"]["uid"], Json()
    for found in cluster.watch_job(name, on_lost=lambda why: view.message(f"connection lost: {why}; retrying")):
        if found is None or found["metadata"]["uid"] != uid:
            raise failed(f"finetunejob {name}", "Deleted", "The job was deleted.", "`finetune list` lists the jobs.")
        for each in status_diff(last, found):
            if isinstance(each, str):
                view.message(each)
            else:
                view.record(each)
                records.append(each)
        if has_ended(found) or failure(found):
            return found
        last = found
    raise AssertionError("a watch without a time limit does not end")


def _outcome(job: Json) -> Outcome:
    """The outcome of a job that has succeeded, as of a local run."""
    result, complete = job["status"].get("result") or {}, condition(job, c.COMPLETE)
    assert complete is not None, "a job that has ended and has not failed is complete"
    report = FinalReport(time=0, exit_code=Exit.OK, reason=complete["reason"], message=complete["message"], step=0,
                         result=result.get("uri") or "", metrics=result.get("metrics") or {},
                         best_step=result.get("best"))  # fmt: skip
    return Outcome(job["metadata"]["name"], Exit.OK, report)


def _seconds(job: Json) -> float:
    """From the first start to the end."""
    started = job["status"].get("startTime") or job["metadata"]["creationTimestamp"]
    return (parse_time(job["status"]["completionTime"]) - parse_time(started)).total_seconds()
