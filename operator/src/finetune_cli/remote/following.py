"""A job followed to its end: what `finetune watch` and `submit --wait` do."""

from __future__ import annotations

import sys
from contextlib import closing

import click

from finetune_api.resource import conditions as c
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import FinalReport, Record
from finetune_cli import exit_codes
from finetune_cli.errors import Refused
from finetune_cli.local import display, summary
from finetune_cli.local.cause import Ending
from finetune_cli.local.display import Display

from .cluster import Cluster
from .errors import hindered, refused
from .news import news
from .server import Json
from .views import condition, ended, is_true, moment


def follow(cluster: Cluster, name: str, *, quiet: bool = False) -> Json:
    """Show how the job comes along; return it when it has succeeded. Raises Refused and Hindered if it has not."""
    job, seen = cluster.job(name), list[Record]()
    try:
        with closing(display.choose(quiet=quiet)) as shown:
            job = _to_its_end(cluster, job, shown, seen)
    except KeyboardInterrupt:
        click.echo(f"The job goes on. To see it again: finetune watch {name} -n {cluster.namespace}", err=True)
        sys.exit(exit_codes.INTERRUPTED)
    if problem := failure(job):
        raise problem
    if not quiet:
        click.echo(summary.succeeded(_ending(job), seen, _seconds(job)))
    return job


def failure(job: Json) -> Refused | None:
    """Why a job that is over did not succeed, or why one is refused; None if neither is so."""
    path = f"finetunejob {job['metadata']['name']}"
    failed = condition(job, c.FAILED)
    if ended(job) and failed and failed["status"] == "True":
        remedy = f"`finetune logs {job['metadata']['name']}` shows what its pods said."
        return hindered(path, failed["reason"], failed["message"], remedy)
    accepted = condition(job, c.ACCEPTED)
    if not ended(job) and accepted and accepted["status"] == "False" and _is_current(job):
        remedy = "Correct the job: delete it and submit it again, or `kubectl apply` the corrected file."
        return refused(path, accepted["reason"], accepted["message"], remedy)
    return None


def _to_its_end(cluster: Cluster, before: Json, shown: Display, seen: list[Record]) -> Json:
    uid, last = before["metadata"]["uid"], Json()
    lost = lambda why: shown.say(f"no news: {why}; trying again")  # noqa: E731
    for job in cluster.job_over_time(before["metadata"]["name"], lost=lost):
        if job is None or job["metadata"]["uid"] != uid:
            raise hindered(f"finetunejob {before['metadata']['name']}", "Deleted", "The job was deleted.",
                           "`finetune list` shows what there is.")  # fmt: skip
        for each in news(last, job):
            if isinstance(each, str):
                shown.say(each)
            else:
                shown.record(each)
                seen.append(each)
        if ended(job) or failure(job):
            return job
        last = job
    raise AssertionError("a watch without an end has none")


def _is_current(job: Json) -> bool:
    """Whether the status is about the job as it is now."""
    seen: int | None = job["status"].get("observedGeneration")
    return seen is None or seen == job["metadata"]["generation"]


def _ending(job: Json) -> Ending:
    """How a job succeeded, in the shape of a local run's end."""
    result, complete = job["status"].get("result") or {}, condition(job, c.COMPLETE)
    assert complete is not None, "a job that is over and did not fail is complete"
    report = FinalReport(time=0, exit_code=Exit.OK, reason=complete["reason"], message=complete["message"], step=0,
                         result=result.get("uri") or "", metrics=result.get("metrics") or {},
                         best_step=result.get("best"))  # fmt: skip
    return Ending(job["metadata"]["name"], Exit.OK, report)


def _seconds(job: Json) -> float:
    """From the first start to the end."""
    begun = job["status"].get("startTime") or job["metadata"]["creationTimestamp"]
    return (moment(job["status"]["completionTime"]) - moment(begun)).total_seconds()


def succeeded(job: Json) -> bool:
    return ended(job) and is_true(job, c.COMPLETE)
