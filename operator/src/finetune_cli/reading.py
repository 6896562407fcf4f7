"""From a file on the command line to a FinetuneJob as plain data. Called by every verb that takes a file.

YAML, JSON, or the TOML of toml_jobs. Nothing is judged here beyond what is needed to find one job in the text.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from finetune_api.resource import key_table
from finetune_api.resource.names import API_VERSION, KIND
from finetune_api.validation.problem import Problem

from . import kubernetes_yaml
from .errors import Refused
from .kubernetes_yaml import Document, Malformed

STDIN = "-"
_TOML_START = re.compile(r"^(?:\s|#.*\n)*(?:\[[^\]\n]+\]\s*(?:#.*)?(?:\n|$)|[A-Za-z0-9_-]+\s*=)")


@dataclass(frozen=True)
class Input:
    """A job as it was read."""

    file: str
    resource: dict[str, Any]
    toml: bool = False
    place: Callable[[str], str] = lambda path: ""
    """file:line:column of a key path, or nothing where that is not known."""

    def refused(self, problems: Sequence[Problem]) -> Refused:
        """The problems in the words of the file: a TOML has no `spec`."""
        return Refused([self.spelt(p) for p in problems], [self.place(p.path) for p in problems])

    def spelt(self, problem: Problem) -> Problem:
        if not self.toml:
            return problem
        spec = re.compile(rf"\bspec\.(?=(?:{'|'.join(key_table.keys(key_table.spec()))})\b)")
        path, message, remedy = (spec.sub("", text) for text in (problem.path, problem.message, problem.remedy))
        return replace(problem, path=path, message=message, remedy=remedy)


def read(file: str) -> Input:
    """The job in `file`, or in standard input for "-". Raises Refused."""
    text = _text(file)
    shown = "<stdin>" if file == STDIN else file
    if file.endswith(".toml") or (file == STDIN and _TOML_START.match(text)):
        from . import toml_jobs  # noqa: PLC0415 - with the reader of TOML: most files are YAML

        return Input(shown, toml_jobs.resource(text, "job" if file == STDIN else file), toml=True)
    document = _job(_documents(text, shown), shown)
    if not isinstance(document.value, dict):
        raise Refused([_not_a_job(shown, "This is not a map of keys and values.")])
    where = (lambda path: _at(shown, *document.place(path))) if document.node else (lambda path: "")
    return Input(shown, document.value, place=where)


def _text(file: str) -> str:
    try:
        raw = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as error:
        problem = Problem(file, "NotReadable", f"{error.strerror}.", "Name a file that can be read.")
    except UnicodeDecodeError as error:
        problem = Problem(file, "NotReadable", f"Byte {error.start} is not UTF-8.", "Save it as UTF-8 text.")
    raise Refused([problem])


def _documents(text: str, file: str) -> list[Document]:
    """What is not proper JSON is read as YAML, whose errors say where."""
    with suppress(ValueError):
        return [Document(json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant))]
    try:
        return list(kubernetes_yaml.documents(text))
    except Malformed as error:
        place = _at(file, error.line, error.column)
        raise Refused([Problem(place, "NotYaml", f"{error}.", "Correct the YAML there.")]) from None


def _job(documents: list[Document], file: str) -> Document:
    """The one job of the file. Other documents, such as a ConfigMap with the rows, are passed over."""
    if len(documents) == 1:
        return documents[0]
    jobs = [d for d in documents if isinstance(d.value, dict) and d.value.get("kind") == KIND]
    if len(jobs) != 1:
        raise Refused([_not_a_job(file, f"There are {len(jobs)} documents of kind {KIND} in it.")])
    return jobs[0]


def _not_a_job(file: str, message: str) -> Problem:
    return Problem(file, "NotAJob", message, f"Give a file with one {KIND} of {API_VERSION}.")


def _at(file: str, line: int, column: int) -> str:
    return f"{file}:{line}:{column}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError
    return result


def _no_constant(word: str) -> NoReturn:
    raise ValueError(word)
