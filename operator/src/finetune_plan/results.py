"""What a claim remembers of the results on it: an annotation for each, that outlives the job and ends with the claim.

So a job that was deleted and is applied again, unchanged and with its output in place, succeeds without a pod.
To train again, name another output: the trainer too finds the finished result in the old one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping

from finetune_api.resource import reasons
from finetune_api.resource.names import GROUP
from finetune_api.resource.status import ResultStatus, Status
from finetune_api.validation.problem import Problem
from finetune_api.validation.uris import OUTPUT

from .job_settings import JobSettings
from .model import RecordResult
from .mounts import mount

PREFIX = f"result.{GROUP}/"
LONGEST_RECORD = 16 * 1024
"""Characters; what we write has less."""


def claim(job: JobSettings) -> str:
    """The claim that holds the output; empty if there is none, or if the URI cannot be parsed."""
    uri = job.output.value
    try:
        return mount(uri, OUTPUT).claim if isinstance(uri, str) else ""
    except ValueError:
        return ""


def of_claim(annotations: Mapping[str, str]) -> dict[str, str]:
    """The annotations of a claim that may be records: others may write anything there."""
    return {k: v for k, v in annotations.items() if k.startswith(PREFIX) and len(v) <= LONGEST_RECORD}


def recorded(job: JobSettings, annotations: Mapping[str, str], digest: str) -> ResultStatus | None:
    """The result that the claim knows for exactly this run configuration."""
    try:
        known = json.loads(annotations.get(_annotation(job), "{}"), parse_constant=_refuse)
        return ResultStatus.model_validate(known["result"]) if known.get("configuration") == digest else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # it was edited: ignore it
        return None


def record(job: JobSettings, status: Status) -> RecordResult | None:
    """What to write on the claim of a job that has succeeded."""
    if not claim(job) or not status.result or not status.resolved:
        return None
    text = {
        "configuration": status.resolved.digest,
        "result": status.result.model_dump(mode="json", exclude_none=True),
        "completionTime": status.completionTime,
    }
    return RecordResult(claim(job), _annotation(job), json.dumps(text))


def already_complete_message(job: JobSettings) -> str:
    """What a person reads who applied a job that is done already."""
    return reasons.ALREADY_COMPLETE.text(claim=claim(job))


def not_shared(job: JobSettings, modes: Collection[str], nodes: int) -> Problem:
    """The refusal of a claim that not all nodes can mount."""
    message = f"The claim {claim(job)} can be mounted by one node ({', '.join(modes)}), and the job has {nodes}."
    remedy = "Name a claim with the access mode ReadWriteMany, or set compute.nodes to 1."
    return Problem("spec.output.uri", "OutputNotShared", message, remedy)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _annotation(job: JobSettings) -> str:
    """One for each place on the claim; a hash, because names of annotations are short and have no slashes."""
    return PREFIX + hashlib.sha256(str(job.output.value).rstrip("/").encode()).hexdigest()[:16]
