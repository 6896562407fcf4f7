"""A strict reader of JSON Lines: one JSON object per line, UTF-8, no duplicate keys, no NaN. Called by `read`.

Python's json accepts duplicate keys, NaN and lone surrogates; each of them would train on something other than
what the author of the file sees.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from . import regular
from .problems import InvalidRow
from .rows import Json

Record = dict[str, Json]

ONE_PER_LINE = "write one JSON object per line"
_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def records(path: Path) -> Iterator[tuple[int, Record | InvalidRow]]:
    """Each non-blank line with its number from 1: its object, or the problem.

    Raises OSError if the file cannot be read, or is not a regular file.
    """
    with regular.opened(path, "rb") as lines:
        for number, raw in enumerate(lines, start=1):
            line = raw.removeprefix(_BOM) if number == 1 else raw
            if line.strip():
                yield number, _parsed(line.rstrip(b"\r\n"))


def _parsed(line: bytes) -> Record | InvalidRow:
    try:
        return loads(_text(line))
    except InvalidRow as problem:
        return problem


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = f"byte {line[error.start]:#04x} at position {error.start + 1} is not UTF-8"
        raise InvalidRow(f"{wrong}; save the file as UTF-8 text, {ONE_PER_LINE}") from None


def loads(text: str) -> Record:
    """The JSON object in `text`. Raises InvalidRow."""
    value = value_of(text)
    if not isinstance(value, dict):
        raise InvalidRow(f"the line is {json_type(value)}, not an object; {ONE_PER_LINE}")
    return value


def value_of(text: str) -> Json:
    """The JSON value in `text`, as strict as for a line. Raises InvalidRow."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InvalidRow(
            f"invalid JSON: {error.msg.removesuffix(' at')} at column {error.colno}; {ONE_PER_LINE}"
        ) from None
    except RecursionError:
        raise InvalidRow("the JSON is nested too deeply; flatten the row") from None
    except InvalidRow:
        raise
    except ValueError:
        raise InvalidRow("a number has too many digits; write it as a string") from None
    if _SURROGATE.search(text):
        _refuse_lone_surrogates(value)
    return value


def _refuse_lone_surrogates(value: Json) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        lone = r"a \ud800-\udfff escape is a lone surrogate, which is not a character"
        raise InvalidRow(f"{lone}; write the surrogate pair or the character itself") from None


def _object(pairs: list[tuple[str, Json]]) -> Record:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise InvalidRow(f"duplicate key {duplicate!r} in one object; keep one")
    return result


def _constant(name: str) -> NoReturn:
    raise InvalidRow(f"{name} is not a JSON value; write null or remove the key")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise InvalidRow(f"the number {digits} is too large; write it as a string")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)


def json_type(value: Json) -> str:
    """The JSON type of a value, with its article."""
    if value is None:
        return "null"
    for types, type_name in (
        (bool, "a boolean"), (int | float, "a number"), (str, "a string"), (list, "a list"),
    ):  # fmt: skip
        if isinstance(value, types):
            return type_name
    return "an object"
