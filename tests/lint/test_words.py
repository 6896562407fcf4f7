"""Names and messages of the product use the field's own terms, and a class name has one meaning.

A word or phrase that is used all the same is listed below, with the reason.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("crds/src", "operator/src", "trainer-image/src")

NAMES = {
    "agreement": "collectives",
    "beat": "heartbeat",
    "carrier": "transfer_pod",
    "facts": "details, JobSettings",
    "hearsay": "peer_lost_grace",
    "hindrance": "pod_reasons",
    "hindrances": "pod_reasons",
    "hollow": "meta, empty-initialised",
    "judge": "check, applies",
    "judges": "check, applies",
    "lean": "transform",
    "look": "reconcile",
    "looks": "reconcile",
    "mend": "correct",
    "mentions": "references, paths",
    "mirror": "cache",
    "misshapen": "malformed",
    "news": "status_diff",
    "note": "on_event, as a verb",
    "overdue": "termination_overdue",
    "pace": "RateLimiter",
    "parcel": "upload",
    "place": "mount, RankInfo",
    "places": "mounts, volume_refs",
    "plain": "normalize",
    "said": "message, refusal",
    "saw": "received",
    "seen": "snapshot, count",
    "shelf": "Store",
    "shown": "quote, listed",
    "story": "ReconcileContext",
    "sweep": "resync",
    "switches": "lifecycle",
    "told": "status builder",
    "tree": "key_table",
    "words": "log_fields, describe_schema, format_record",
}
"""Word of an identifier -> what to write."""

ALLOWED_NAMES = {
    "Note": "a note for the user",
    "note": "a note for the user",
    "POD_OVERDUE": "named as the reason PodOverdue, which clusters have stored",
    "TERMINATION_OVERDUE": "the term to use",
    "termination_overdue": "the term to use",
    "fsync_tree": "a tree of files",
    "remove_tree": "a tree of files",
}
"""Identifier -> why it may have such a word."""

PHRASES = (
    r"anew", r"by itself", r"comes? along", r"for good", r"goes on", r"hinder\w*", r"judge[ds]?", r"looked",
    r"looks? at", r"makes? sense", r"mend(?:s|ed)?", r"nobody", r"once more", r"shared out", r"so many",
    r"taken away", r"told", r"way out", r"went away", r"whoever", r"words",
)  # fmt: skip
"""Not in messages, descriptions or other strings."""

PROSE = (
    r"anew", r"hinder\w*", r"judge[ds]?", r"mend(?:s|ed)?", r"nobody", r"so many", r"told", r"way out", r"whoever",
)  # fmt: skip
"""Not in docstrings or comments either."""

ALLOWED_STRINGS = {
    "python.words": "a key in checkpoints",
}
"""String -> why it may have such a phrase."""

SAME_CLASS_NAMES = {
    "NotFound": "the API server answered 404: one for the errors of each of its two clients",
    "AlreadyExists": "likewise, 409 on creation",
    "Unavailable": "likewise, 429 or 5xx",
}
"""Class name that several packages define -> why."""


def test_names_are_terms_of_the_field() -> None:
    used = [
        f"{where}: {name}: {word!r} -> {NAMES[word]}"
        for path in _files()
        for where, name in _names(path)
        for word in _split(name)
        if word in NAMES and name not in ALLOWED_NAMES
    ]
    assert used == []


def test_messages_are_plain_english() -> None:
    pattern = _any_of(PHRASES)
    used = [
        f"{where}: {pattern.findall(text)} in {text!r}"
        for path in _files()
        for where, text in _strings(path)
        if pattern.search(text) and text not in ALLOWED_STRINGS
    ]
    assert used == []


def test_docstrings_and_comments_are_plain_english() -> None:
    pattern = _any_of(PROSE)
    used = [
        f"{where}: {pattern.findall(text)} in {text!r}"
        for path in _files()
        for where, text in (*_docstrings(path), *_comments(path))
        if pattern.search(text)
    ]
    assert used == []


def test_a_class_name_has_one_meaning() -> None:
    places = defaultdict(list)
    for path in _files():
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(_where(path, node.lineno))
    assert {name: at for name, at in places.items() if len(at) > 1 and name not in SAME_CLASS_NAMES} == {}


def test_every_exception_is_used() -> None:
    names = {name for path in _files() for _, name in _names(path)}
    strings = {text for path in _files() for _, text in _strings(path)}
    assert [name for name in ALLOWED_NAMES if name not in names] == []
    assert [text for text in ALLOWED_STRINGS if text not in strings] == []


def _files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


_PARSED: dict[Path, ast.Module] = {}


def _tree(path: Path) -> ast.Module:
    if path not in _PARSED:
        _PARSED[path] = ast.parse(path.read_text(encoding="utf-8"))
    return _PARSED[path]


def _where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def _names(path: Path) -> Iterator[tuple[str, str]]:
    """Names that the file defines, with their places; its own and that of its package too."""
    yield from ((_where(path, 1), name) for name in (path.stem, path.parent.name))
    for node in ast.walk(_tree(path)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield _where(path, node.lineno), name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield _where(path, node.lineno), name
            case ast.alias(asname=str(name)):
                yield _where(path, node.lineno), name


def _split(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _strings(path: Path) -> Iterator[tuple[str, str]]:
    """All string literals but docstrings."""
    docstrings = {id(node) for node in _docstring_nodes(path)}
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield _where(path, node.lineno), node.value


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    return ((_where(path, node.lineno), str(node.value)) for node in _docstring_nodes(path))


def _docstring_nodes(path: Path) -> Iterator[ast.Constant]:
    """Strings that stand alone: docstrings of modules, classes and functions, and below variables."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value


def _comments(path: Path) -> Iterator[tuple[str, str]]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield _where(path, token.start[0]), token.string


def _any_of(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the phrases, also across a line break."""
    return re.compile(rf"(?i)\b(?:{'|'.join(phrases)})\b".replace(" ", r"\s+"))
