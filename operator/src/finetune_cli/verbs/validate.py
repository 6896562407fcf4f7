"""`finetune validate`: everything that is wrong with jobs, at once, without a cluster."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from finetune_api.validation.problem import Problem
from finetune_cli import changes, exit_codes, planning, printing, reading
from finetune_cli.changes import Changes
from finetune_cli.errors import Refused, described
from finetune_cli.planning import Judged
from finetune_plan.resolve import Verdict


@click.command()
@click.argument("file", nargs=-1, required=True)
@changes.options
@click.option("--check-data", is_flag=True, help="Read the rows that the job names, where they are plain paths.")
@printing.option(help="Print {valid, errors, informational, notes, method, engine, layout}; of several files a list.")
def command(file: tuple[str, ...], check_data: bool, form: str | None, **options: Any) -> None:
    """Say everything that is wrong with the jobs in FILE ("-" is standard input).

    The answer is that of a cluster with default settings. With --dataset the rows are read as well, and with
    --model a folder is looked for. Exit code 2 if anything is wrong.
    """
    answers = [answer(each, Changes(**options), check_data=check_data) for each in file]
    if form:
        printing.document(answers[0] if len(answers) == 1 else answers, form)
    else:
        click.echo("\n".join(_sentences(answer) for answer in answers))
    if not all(answer["valid"] for answer in answers):
        sys.exit(exit_codes.INPUT_WRONG)


def answer(file: str, asked: Changes, *, check_data: bool) -> dict[str, Any]:
    """One file's answer, in the shape that -o json prints."""
    try:
        found = planning.judged(reading.read(file), asked)
    except Refused as refused:
        return _verdict(file, refused.problems, refused.places, None)
    problems = [*found.verdict.problems, *_files(found, asked, check_data=check_data)]
    spelt, places = found.source.refused(problems).problems, [found.source.place(p.path) for p in problems]
    return _verdict(found.source.file, spelt, places, found.verdict)


def _files(found: Judged, asked: Changes, *, check_data: bool) -> list[Problem]:
    if found.verdict.resolution is None or not (check_data or asked.dataset or asked.model):
        return []
    # With all that reads rows, and the models of the run configuration: most calls do without.
    from finetune_cli import files  # noqa: PLC0415
    from finetune_plan.runconfig import run_config  # noqa: PLC0415

    job = found.verdict.resolution
    rows = files.data_problems(job.spec, run_config(job).data) if check_data or asked.dataset else ()
    model = files.model_problems(job.spec) if asked.model else ()
    return [*rows, *model]


def _verdict(
    file: str, problems: Sequence[Problem], places: Sequence[str], verdict: Verdict | None
) -> dict[str, Any]:  # fmt: skip
    pairs = zip(problems, places, strict=True)
    errors = [asdict(problem) | ({"place": place} if place else {}) for problem, place in pairs]
    return {"file": file, "valid": not errors, "errors": errors, **_decided(verdict)}


def _decided(verdict: Verdict | None) -> dict[str, Any]:
    resolution = verdict.resolution if verdict else None
    if verdict is None or resolution is None:
        return {"informational": [], "notes": [], "method": None, "engine": None, "layout": None}
    layout = resolution.layout
    return {
        "informational": list(resolution.informational),
        "notes": [asdict(note) for note in resolution.notes],
        "method": resolution.method.value,
        "engine": resolution.engine.value,
        "layout": {
            "nodes": layout.nodes,
            "gpusPerNode": layout.gpus_per_node,
            "worldSize": layout.world_size,
            "dataParallel": layout.data_parallel,
            "tensorParallel": layout.tensor_parallel,
            "pipelineParallel": layout.pipeline_parallel,
            "reasons": [*layout.reasons, resolution.engine_reason],
        },
    }


def _sentences(answer: dict[str, Any]) -> str:
    """The answer for people."""
    lines = []
    for error in answer["errors"]:
        place = error.pop("place", "")
        lines.append(described(Problem(**error), place))
    if answer["valid"]:
        lines += [f"{answer['file']}: {click.style('valid', fg='green')}", *_facts(answer)]
    else:
        count = len(answer["errors"])
        lines.append(f"{answer['file']}: {click.style('refused', fg='red')}, {count} problem{'s' * (count > 1)}")
    return "\n".join(lines)


def _facts(answer: dict[str, Any]) -> list[str]:
    layout = answer["layout"]
    nodes = f"{layout['nodes']} node{'s' * (layout['nodes'] > 1)} x {layout['gpusPerNode']}"
    ranks = f"{layout['worldSize']} rank{'s' * (layout['worldSize'] > 1)}"
    return [
        f"  method: {answer['method']} on {answer['engine']}",
        f"  layout: {nodes} = {ranks}",
        *(f"  note: {note['sentence']} [{note['reason']}]" for note in answer["notes"]),
        *(f"  accepted, and changing nothing: {path.removeprefix('spec.')}" for path in answer["informational"]),
    ]
