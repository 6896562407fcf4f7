"""`finetune render`: the manifest, run configuration and status that a cluster would have, without a cluster."""

from __future__ import annotations

import json
from typing import Any

import click

from finetune_cli import job_file, overrides, planning, printing
from finetune_cli.overrides import Overrides
from finetune_cli.planning import ValidatedJob
from finetune_plan import statuses
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.workload import workload

MANIFEST = BACKEND.kind.lower()
PARTS = (MANIFEST, "run", "status", "all")


@click.command()
@click.argument("file")
@overrides.options
@click.option(
    "--what",
    type=click.Choice(PARTS),
    default=MANIFEST,
    show_default=True,
    help="The manifest, the trainer's run configuration, the first status, or all three in one map.",
)
@printing.option(default="yaml", show_default=True, help="Format.")  # fmt: skip
def command(file: str, what: str, form: str, **options: Any) -> None:
    """Print what a cluster would run for the job in FILE ("-" is standard input)."""
    source = job_file.read(file)
    job = planning.accept(source, Overrides(**options), cluster=source.is_resource)
    planning.print_notes(job.resolution)
    planning.print_left_to_cluster(job)
    printing.document(render(job, what), form)


def render(job: ValidatedJob, part: str) -> dict[str, Any]:
    """The plan of a job, or one part of it."""
    work = workload(job.resolution, planning.SETTINGS)
    status = statuses.admission(job.verdict, now=planning.timestamp())
    plan: dict[str, Any] = {
        MANIFEST: BACKEND.render(work, job.resource["metadata"].get("namespace")),
        "run": json.loads(work.config_json),
        "status": status.model_dump(mode="json", exclude_none=True),
    }
    return plan if part == "all" else plan[part]
