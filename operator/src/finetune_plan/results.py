"""What a claim remembers of the results on it: an annotation for each, that outlives the job and ends with the claim.

So a job that was deleted and is applied again, unchanged and with its output in place, succeeds without a pod.
Who wants to train again removes the annotation, or names another output.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError

from finetune_api.resource.names import GROUP
from finetune_api.resource.status import ResultStatus, Status
from finetune_api.validation.predicates import find
from finetune_api.validation.problem import Problem
from finetune_api.validation.uris import OUTPUT

from .model import Remember
from .mounts import place

PREFIX = f"result.{GROUP}/"


def claim(spec: Mapping[str, Any]) -> str:
    """The claim that the output lies on; empty if it is on none, or if nobody can tell."""
    uri = find(spec, "output.uri")
    try:
        return place(uri, OUTPUT).claim if isinstance(uri, str) else ""
    except ValueError:
        return ""


def remembered(spec: Mapping[str, Any], annotations: Mapping[str, str], digest: str) -> ResultStatus | None:
    """The result that the claim knows for exactly this run configuration."""
    try:
        known = json.loads(annotations.get(_annotation(spec), "{}"))
        return ResultStatus.model_validate(known["result"]) if known.get("configuration") == digest else None
    except (ValueError, KeyError, AttributeError, ValidationError):  # somebody wrote into it: it is no memory of ours
        return None


def remember(spec: Mapping[str, Any], status: Status) -> Remember | None:
    """What to write on the claim of a job that has succeeded."""
    if not claim(spec) or not status.result or not status.resolved:
        return None
    text = {
        "configuration": status.resolved.digest,
        "result": status.result.model_dump(mode="json", exclude_none=True),
        "completionTime": status.completionTime,
    }
    return Remember(claim(spec), _annotation(spec), json.dumps(text))


def sentence(spec: Mapping[str, Any]) -> str:
    """What a person reads who applied a job that is done already."""
    name = claim(spec)
    return (
        f"The claim {name} holds the result of this very job already, so nothing is trained. To train again, run "
        f"`kubectl annotate pvc {name} {_annotation(spec)}-` and create the job anew, or change output.uri."
    )


def unshared(spec: Mapping[str, Any], modes: Collection[str], nodes: int) -> Problem:
    """The refusal of a claim that not all nodes can mount."""
    message = (
        f"The claim {claim(spec)} is mounted by one node at a time ({', '.join(modes)}), and the job has {nodes}."
    )
    remedy = "Name a claim with the access mode ReadWriteMany, or set compute.nodes to 1."
    return Problem("spec.output.uri", "OutputNotShared", message, remedy)


def _annotation(spec: Mapping[str, Any]) -> str:
    """One for each place on the claim; a hash, because names of annotations are short and have no slashes."""
    return PREFIX + hashlib.sha256(str(find(spec, "output.uri")).rstrip("/").encode()).hexdigest()[:16]
