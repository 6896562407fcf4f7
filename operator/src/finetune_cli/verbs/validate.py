"""`finetune validate`: all problems of jobs, without a cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import click

from finetune_api.validation.problem import Problem
from finetune_api.validation.shape import quote
from finetune_cli import exit_codes, job_file, overrides, planning, printing
from finetune_cli.errors import InvalidInput, format_problem
from finetune_cli.overrides import Overrides
from finetune_cli.planning import ValidatedJob
from finetune_plan.deepspeed_dictionary import KEY as DICTIONARY
from finetune_plan.resolve import Verdict


@click.command()
@click.argument("file", nargs=-1, required=True)
@overrides.options
@click.option("--check-data", is_flag=True, help="Also read the rows that the job names by a local path.")
@printing.option(
    help="Print {valid, errors, informational, notes, method, engine, layout, network}, or a list of them."
)
def command(file: tuple[str, ...], check_data: bool, form: str | None, **options: Any) -> None:
    """Check the jobs in FILE ("-" is standard input), and report every problem.

    The verdict is that of a cluster with default settings. What yours decides about the network between nodes is a
    note. A TOML file, which a cluster cannot take as it is, gets notes about what else `finetune submit` needs.
    --dataset also checks the rows, --model also checks the folder. Exit code 2 if there are problems.
    """
    answers = [answer(each, Overrides(**options), check_data=check_data) for each in file]
    if form:
        printing.document(answers[0] if len(answers) == 1 else answers, form)
    else:
        click.echo("\n".join(_format(answer) for answer in answers))
    if not all(answer["valid"] for answer in answers):
        sys.exit(exit_codes.INPUT_WRONG)


def answer(file: str, given: Overrides, *, check_data: bool) -> dict[str, Any]:
    """The answer for one file, as -o json prints it."""
    try:
        job = job_file.read(file)
        found = planning.validate(job, given, cluster=job.is_resource)
    except InvalidInput as error:
        return _verdict(file, error.problems, error.locations, None)
    problems = [*found.verdict.problems, *_files(found, given, check_data=check_data)]
    invalid = found.file.invalid(problems)
    verdict = _verdict(found.file.file, invalid.problems, invalid.locations, found.verdict)
    notes = [*_inlined(found), *_left_to_cluster(found)] if job.is_resource else _cluster_notes(found, given)
    return verdict | {"notes": [*verdict["notes"], *notes]}


def _inlined(found: ValidatedJob) -> Iterator[dict[str, str]]:
    """What `kubectl apply` of the file lacks."""
    if file := found.dictionary_file:
        yield {
            "reason": "LocalFile",
            "sentence": f"{DICTIONARY} names the file {quote(file)} of this machine, which a cluster does not see: "
            "`finetune submit` and `finetune render` put its content there, and `kubectl apply` is refused.",
        }


def _left_to_cluster(found: ValidatedJob) -> list[dict[str, str]]:
    """What only the settings of a cluster decide."""
    return [
        {"reason": problem.reason, "sentence": found.file.rephrase(planning.cluster_decides(problem))}
        for problem in found.left_to_cluster
    ]


def _cluster_notes(found: ValidatedJob, given: Overrides) -> list[dict[str, str]]:
    """What only a cluster refuses. A file in a dialect uses options of `finetune submit` instead."""
    strict = planning.validate(found.file, given)
    return [
        *(
            {"reason": problem.reason, "sentence": found.file.rephrase(f"{problem.message} {problem.remedy}")}
            for problem in strict.verdict.problems
            if problem not in found.verdict.problems
        ),
        *_left_to_cluster(strict),
    ]


def _files(found: ValidatedJob, given: Overrides, *, check_data: bool) -> list[Problem]:
    if found.verdict.resolution is None or not (check_data or given.dataset or given.model):
        return []
    # These import the readers of rows and the run configuration, which most calls do not need.
    from finetune_cli import local_files  # noqa: PLC0415

    resolution = found.verdict.resolution
    rows = (
        local_files.data_problems(resolution.job, resolution.run_config.data) if check_data or given.dataset else ()
    )
    model = local_files.model_problems(resolution.job) if given.model else ()
    return [*rows, *model]


def _verdict(
    file: str, problems: Sequence[Problem], locations: Sequence[str], verdict: Verdict | None
) -> dict[str, Any]:  # fmt: skip
    pairs = zip(problems, locations, strict=True)
    errors = [asdict(problem) | ({"place": location} if location else {}) for problem, location in pairs]
    return {"file": file, "valid": not errors, "errors": errors, **_decided(verdict)}


def _decided(verdict: Verdict | None) -> dict[str, Any]:
    resolution = verdict.resolution if verdict else None
    if verdict is None or resolution is None:
        return {"informational": [], "notes": [], "method": None, "engine": None, "layout": None, "network": None}
    layout, network = resolution.layout, resolution.network
    return {
        "informational": list(resolution.job.informational),
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
        "network": {"profile": network.name, "reason": network.reason} if network.name else None,
    }


def _format(answer: dict[str, Any]) -> str:
    """The answer for people."""
    lines = []
    for error in answer["errors"]:
        location = error.pop("place", "")
        lines.append(format_problem(Problem(**error), location))
    if answer["valid"]:
        lines += [f"{answer['file']}: {click.style('valid', fg='green')}", *_details(answer)]
    else:
        count = len(answer["errors"])
        lines.append(f"{answer['file']}: {click.style('refused', fg='red')}, {count} problem{'s' * (count > 1)}")
    return "\n".join(lines)


def _details(answer: dict[str, Any]) -> list[str]:
    layout, network = answer["layout"], answer["network"]
    nodes = f"{layout['nodes']} node{'s' * (layout['nodes'] > 1)} x {layout['gpusPerNode']}"
    ranks = f"{layout['worldSize']} rank{'s' * (layout['worldSize'] > 1)}"
    return [
        f"  method: {answer['method']} on {answer['engine']}",
        f"  layout: {nodes} = {ranks}",
        *([f"  network: {network['profile']}. {network['reason']}"] if network and layout["nodes"] > 1 else ()),
        *(f"  note: {note['sentence']} [{note['reason']}]" for note in answer["notes"]),
        *(f"  accepted but without effect: {path.removeprefix('spec.')}" for path in answer["informational"]),
    ]
