"""JSON Lines, strictly: one JSON object a line, UTF-8, no key twice, no NaN. Called by `read`.

Python's own json lets double keys, NaN and half surrogate pairs pass; each of them trains on something else
than what the file's author sees.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from .problems import BadRow
from .rows import Json

Record = dict[str, Json]

ONE_A_LINE = 'write one JSON object a line, as in {"messages": [...]}'
_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def records(path: Path) -> Iterator[tuple[int, Record | BadRow]]:
    """Each line that is not blank, with its number from 1: its object, or what is wrong with it.

    Raises OSError if the file cannot be read.
    """
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            line = raw.removeprefix(_BOM) if number == 1 else raw
            if line.strip():
                yield number, _parsed(line.rstrip(b"\r\n"))


def _parsed(line: bytes) -> Record | BadRow:
    try:
        return loads(_text(line))
    except BadRow as problem:
        return problem


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = f"byte {line[error.start]:#04x} at position {error.start + 1} is not UTF-8"
        raise BadRow(f"{wrong}; save the file as UTF-8 text, {ONE_A_LINE}") from None


def loads(text: str) -> Record:
    """The object that `text` writes. Raises BadRow."""
    value = value_of(text)
    if not isinstance(value, dict):
        raise BadRow(f"the line is {kind(value)}, not an object; {ONE_A_LINE}")
    return value


def value_of(text: str) -> Json:
    """The JSON value that `text` writes, as strictly as the file itself is read. Raises BadRow."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}; {ONE_A_LINE}") from None
    except RecursionError:
        raise BadRow("nested too deeply to read; flatten the row") from None
    except BadRow:
        raise
    except ValueError:
        raise BadRow("a number has too many digits to read; write it as a string") from None
    if _SURROGATE.search(text):
        _refuse_half_characters(value)
    return value


def _refuse_half_characters(value: Json) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        half = r"a \ud800-\udfff escape stands alone, which is half a character"
        raise BadRow(f"{half}; write the whole pair or the character itself") from None


def _object(pairs: list[tuple[str, Json]]) -> Record:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadRow(f"the key {twice!r} stands twice in one object; keep one")
    return result


def _constant(word: str) -> NoReturn:
    raise BadRow(f"{word} is not a JSON value; write null or leave the key out")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise BadRow(f"the number {digits} is too large; write it as a string")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)


def kind(value: Json) -> str:
    """What a JSON value is, in JSON's own words."""
    if value is None:
        return "null"
    for types, name in (
        (bool, "a boolean"), (int | float, "a number"), (str, "a string"), (list, "a list"),
    ):  # fmt: skip
        if isinstance(value, types):
            return name
    return "an object"
