"""Reads a job file into a FinetuneJob as plain data: YAML, JSON, or one of the dialects.

Finds the one job of the file; validation comes later.
"""

from __future__ import annotations

import errno
import json
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from finetune_api.resource.names import API_VERSION, KIND
from finetune_api.validation.problem import Problem

from . import dialects, kubernetes_yaml
from .dialects import STDIN
from .errors import InvalidInput
from .kubernetes_yaml import Document, InvalidYaml, too_deep


@dataclass(frozen=True)
class JobFile:
    """A job as it was read."""

    file: str
    resource: dict[str, Any]
    location: Callable[[str], str] = lambda path: ""
    """file:line:column of a key path, or the option that gave its value; empty where it is not known."""
    rephrase: Callable[[str], str] = lambda text: text
    """A sentence about keys, with the keys as the file spells them."""
    is_resource: bool = True
    """Whether the file is a FinetuneJob, which a cluster takes as it is; a dialect goes through `finetune submit`."""

    def invalid(self, problems: Sequence[Problem]) -> InvalidInput:
        """The problems as an error, in the terms of the file."""
        return InvalidInput([self._rephrased(p) for p in problems], [self.location(p.path) for p in problems])

    def _rephrased(self, problem: Problem) -> Problem:
        path, message, remedy = map(self.rephrase, (problem.path, problem.message, problem.remedy))
        return replace(problem, path=path, message=message, remedy=remedy)


def read(file: str) -> JobFile:
    """The job in `file`, or in standard input for "-". Raises InvalidInput."""
    text = _text(file)
    label = "<stdin>" if file == STDIN else file
    dialect = dialects.of(file, text)
    if dialect:
        return JobFile(
            label,
            dialect.resource(text, "job" if file == STDIN else file),
            rephrase=dialect.rephrase,
            is_resource=False,
        )
    document = _job(_documents(text, label), label)
    if not isinstance(document.value, dict):
        raise InvalidInput([_not_a_job(label, "The document is not a map of keys and values.")])
    location = (lambda path: _at(label, *document.location(path))) if document.node else (lambda path: "")
    return JobFile(label, document.value, location)


def _text(file: str) -> str:
    try:
        raw = sys.stdin.buffer.read() if file == STDIN else _content(Path(file))
        return raw.decode("utf-8-sig")
    except OSError as error:
        problem = Problem(file, "NotReadable", f"{error.strerror}.", "Name a file that can be read.")
    except UnicodeDecodeError as error:
        problem = Problem(file, "NotReadable", f"Byte {error.start} is not UTF-8.", "Save the file as UTF-8 text.")
    raise InvalidInput([problem])


def _content(path: Path) -> bytes:
    """Raises OSError for a device, which may have no end."""
    mode = path.stat().st_mode
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise OSError(errno.EINVAL, "This is a device")
    return path.read_bytes()


def _documents(text: str, file: str) -> list[Document]:
    """Text that is not valid JSON is read as YAML, whose errors have a line and a column."""
    with suppress(ValueError, RecursionError):
        return [Document(_json(text))]
    try:
        return list(kubernetes_yaml.documents(text))
    except InvalidYaml as error:
        location = _at(file, error.line, error.column)
        raise InvalidInput(
            [Problem(location, "NotYaml", f"{error}.", "Correct the YAML syntax, or name the file of a job.")]
        ) from None


def _json(text: str) -> Any:
    """Raises ValueError, or RecursionError, for what YAML will explain better."""
    value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    if too_deep(value):
        raise ValueError
    return value


def _job(documents: list[Document], file: str) -> Document:
    """The one job of the file. Other documents, such as a ConfigMap with the rows, are ignored."""
    if len(documents) == 1:
        return documents[0]
    jobs = [d for d in documents if isinstance(d.value, dict) and d.value.get("kind") == KIND]
    if len(jobs) != 1:
        raise InvalidInput([_not_a_job(file, f"The file has {len(jobs)} documents of kind {KIND}.")])
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


def _no_constant(name: str) -> NoReturn:
    """NaN and Infinity are not JSON."""
    raise ValueError(name)
