"""The finetuning TOML of a hosted service: its sections are the sections of the spec.

The name of the job comes from the name of the file.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from finetune_api.resource import key_table
from finetune_api.resource.names import API_VERSION, KIND, NAME_LENGTH
from finetune_api.validation.problem import Problem
from finetune_cli.errors import InvalidInput
from finetune_cli.kubernetes_yaml import TOO_DEEP, too_deep

_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
TYPES = ("sft",)
"""Supported values of the top-level key `type`."""


def resource(text: str, file: str) -> dict[str, Any]:
    """The FinetuneJob of a TOML text. Raises InvalidInput."""
    spec = _parse(text, file)
    kind = spec.pop("type", TYPES[0])
    if kind not in TYPES:
        remedy = 'Write type = "sft", or leave it out.'
        raise InvalidInput([Problem("type", "UnknownValue", f"The training type {kind!r} is not supported.", remedy)])
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": job_name(file)}, "spec": spec}


def _parse(text: str, file: str) -> dict[str, Any]:
    try:
        spec = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or Python's own error about an integer of thousands of digits
        raise InvalidInput([_syntax_error(str(error), text, file)]) from None
    except RecursionError:
        raise InvalidInput([_too_deep(file)]) from None
    if too_deep(spec):
        raise InvalidInput([_too_deep(file)])
    return spec


def rephrase(text: str) -> str:
    """Without `spec.` in front of keys: a TOML file has no spec."""
    sections = "|".join(key_table.keys(key_table.spec()))
    return re.sub(rf"\bspec\.(?=(?:{sections})\b)", "", text)


def job_name(file: str) -> str:
    """A valid job name from the name of a file: qwen3_32b_qlora.toml -> qwen3-32b-qlora."""
    stem = re.sub(r"[^a-z0-9]+", "-", Path(file).stem.lower()).strip("-")
    valid = stem if stem[:1].isalpha() else f"job-{stem}"
    return valid[:NAME_LENGTH].rstrip("-")


def _too_deep(file: str) -> Problem:
    return Problem(file, "NotToml", f"The file is {TOO_DEEP}.", "Flatten its maps and lists.")


def _syntax_error(message: str, text: str, file: str) -> Problem:
    at = _AT.search(message)
    lines = text.count("\n") + 1
    line, column = (at[1] or lines, at[2] or 1) if at else (1, 1)
    return Problem(f"{file}:{line}:{column}", "NotToml", f"{_AT.sub('', message)}.", "Correct the TOML syntax.")
