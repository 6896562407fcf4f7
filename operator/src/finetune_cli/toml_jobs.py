"""The finetuning TOML of the hosted service that people come from, as a FinetuneJob.

Its sections are the sections of the spec, word for word. What the file does not have is made here: the name
of the job, from the name of the file.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from finetune_api.resource.names import API_VERSION, KIND, NAME_LENGTH
from finetune_api.validation.problem import Problem

from .errors import Refused

_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
KINDS = ("sft",)
"""Values of the top-level key `type`: what of that service's training a FinetuneJob does."""


def resource(text: str, file: str) -> dict[str, Any]:
    """The FinetuneJob that a TOML text says. Raises Refused."""
    try:
        spec = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Refused([_malformed(str(error), text, file)]) from None
    kind = spec.pop("type", KINDS[0])
    if kind not in KINDS:
        remedy = 'Write type = "sft", or leave it out.'
        raise Refused([Problem("type", "UnknownValue", f"{kind!r} is not a training that is done here.", remedy)])
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name_of(file)}, "spec": spec}


def name_of(file: str) -> str:
    """A legal name of a job from the name of a file: qwen3_32b_qlora.toml -> qwen3-32b-qlora."""
    words = re.sub(r"[^a-z0-9]+", "-", Path(file).stem.lower()).strip("-")
    legal = words if words[:1].isalpha() else f"job-{words}"
    return legal[:NAME_LENGTH].rstrip("-")


def _malformed(message: str, text: str, file: str) -> Problem:
    at = _AT.search(message)
    lines = text.count("\n") + 1
    line, column = (at[1] or lines, at[2] or 1) if at else (1, 1)
    return Problem(f"{file}:{line}:{column}", "NotToml", f"{_AT.sub('', message)}.", "Correct the TOML there.")
