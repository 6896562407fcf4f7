"""The product as the guards see it: plain data in, plain data out. The only file here that imports it.

Objects have the form that Kubernetes gives them, and answers have names of their own, so that a renamed class,
module or field of the product changes nothing but this file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from finetune_api.runtime import report
from finetune_api.runtime.protocol import CONFIG_ENV
from finetune_cli.main import cli
from finetune_operator import events, progress, transform
from finetune_plan import decide
from finetune_plan.accelerators import ACCELERATORS, Accelerator
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.model import Action, CreateRun, DeletePod, Observed, ObservedClaim, Plan
from finetune_plan.resolve import validate
from finetune_plan.settings import PlanSettings

Json = dict[str, Any]


def plan(seen: Mapping[str, Any], settings: Mapping[str, Any], now: str) -> Json:
    """Everything that follows from an observation at a time (RFC 3339).

    `seen` holds the FinetuneJob, PyTorchJobs and pods as the API server has them, lines of rank 0's log, and
    what the API server said besides.
    """
    job = json.loads(transform.job(seen["job"]).text)
    observed = Observed(
        resource=job,
        runs=tuple(BACKEND.observe(raw) for raw in seen.get("runs", ())),
        pods=tuple(transform.pod(raw, BACKEND) for raw in seen.get("pods", ())),
        records=progress.newest(seen.get("log", ())),
        backend=seen.get("backend", True),
        refusal=seen.get("refusal", ""),
        pods_refusal=seen.get("pods_refusal", ""),
        claim=ObservedClaim(seen.get("claim", {})),
    )
    answer = decide.plan(observed, _settings(settings), datetime.fromisoformat(now), BACKEND)
    status = answer.status.model_dump(mode="json", exclude_none=True)
    return {
        "actions": [_action(action) for action in answer.actions],
        "status": status,
        "requeue_after": answer.requeue_after,
        "remember": _remember(answer),
        "events": events.of_change(job, job["status"], status, now),
        "verdict": judge(job, settings),
    }


def judge(job: Mapping[str, Any], settings: Mapping[str, Any]) -> Json:
    """What is wrong with a job, and what its author should know."""
    verdict = validate(job, _settings(settings))
    return {
        "problems": [asdict(problem) for problem in verdict.problems],
        "notes": [asdict(note) for note in verdict.resolution.notes] if verdict.resolution else [],
    }


def finetune(arguments: Iterable[str], stdin: str | None = None) -> Json:
    """What the command line prints, as on a terminal of 100 columns."""
    result = CliRunner(env={"COLUMNS": "100"}).invoke(cli, list(arguments), prog_name="finetune", input=stdin)
    return {"exit": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}


def read_run_config(file: Path) -> Json:
    """A run configuration as the trainer reads it in its pod. Raises the trainer's own errors."""
    from finetune_trainer import config  # noqa: PLC0415 - plans and the command line do without the trainer

    return config.load({CONFIG_ENV: str(file)}).model_dump(mode="json")


def read_record(line: str) -> Json | None:
    """A line of records.jsonl or of a log, or a final report; None if it is none of them."""
    record = report.parse(line)
    return record.model_dump(mode="json") if record else None


def run_identity(config: Path, content: Mapping[str, str], rows_per_step: int) -> Json:
    """What the trainer compares with the identity in an output folder, and its digest."""
    from finetune_trainer import config as trainer_config  # noqa: PLC0415
    from finetune_trainer import identity  # noqa: PLC0415 - imports torch

    document = identity.document(trainer_config.load({CONFIG_ENV: str(config)}), content, rows_per_step)
    return {"digest": identity.digest(document), "identity": document}


def read_marker(folder: Path) -> Json | None:
    """The marker of a folder that counts; None of one that does not."""
    from finetune_trainer import marker  # noqa: PLC0415

    found = marker.read_marker(folder)
    return found.model_dump(mode="json") if found else None


def _settings(given: Mapping[str, Any]) -> PlanSettings:
    more = {name: Accelerator(**kind) for name, kind in given.get("accelerators", {}).items()}
    accounts = tuple(given.get("service_accounts", ()))
    return PlanSettings(**{**given, "service_accounts": accounts, "accelerators": {**ACCELERATORS, **more}})


def _action(action: Action) -> Json:
    if isinstance(action, CreateRun):
        return {"create": dict(action.manifest), "previous": action.previous}
    if isinstance(action, DeletePod):
        return {"delete_pod": action.name, "uid": action.uid}
    return {"delete": action.name, "uid": action.uid}


def _remember(answer: Plan) -> Json | None:
    return asdict(answer.record_result) if answer.record_result else None
