"""`finetune render`: the manifest, run configuration and status that a cluster would have, without one."""

from __future__ import annotations

import json
from typing import Any

import click

from finetune_cli import changes, planning, printing, reading
from finetune_cli.changes import Changes
from finetune_cli.planning import Planned
from finetune_plan import statuses
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.workload import workload

MANIFEST = BACKEND.kind.lower()
WHAT = (MANIFEST, "run", "status", "all")


@click.command()
@click.argument("file")
@changes.options
@click.option(
    "--what",
    type=click.Choice(WHAT),
    default=MANIFEST,
    show_default=True,
    help="The manifest, the trainer's run configuration, the first status, or the three in one map.",
)
@printing.option(default="yaml", show_default=True, help="Format.")  # fmt: skip
def command(file: str, what: str, form: str, **options: Any) -> None:
    """Print what a cluster would run for the job in FILE ("-" is standard input)."""
    found = planning.planned(reading.read(file), Changes(**options))
    planning.say_notes(found.resolution)
    printing.document(rendered(found, what), form)


def rendered(found: Planned, what: str) -> dict[str, Any]:
    """The plan of a job, or the asked part of it."""
    work = workload(found.resolution, planning.SETTINGS)
    whole: dict[str, Any] = {
        MANIFEST: BACKEND.render(work, found.resource["metadata"].get("namespace")),
        "run": json.loads(work.config_json),
        "status": statuses.admission(found.verdict, now=planning.now()).model_dump(mode="json", exclude_none=True),
    }
    return whole if what == "all" else whole[what]
