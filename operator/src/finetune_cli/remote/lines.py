"""Lines of pods' logs: who wrote them, when, and how they are shown. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import click

from finetune_api.resource import names
from finetune_api.runtime import report
from finetune_cli.local import words
from finetune_plan.backends import DEFAULT as BACKEND

from .server import Json

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


class Pod(NamedTuple):
    """A pod of a run, as far as its log is concerned."""

    node: int
    """Node rank, from 0."""
    run: int
    name: str
    uid: str
    phase: str

    @property
    def over(self) -> bool:
        return self.phase in ("Succeeded", "Failed")


class Line(NamedTuple):
    """A line of a log."""

    time: datetime
    node: int
    text: str


def pod(raw: Json) -> Pod:
    metadata = raw["metadata"]
    node = BACKEND.node_rank(raw)
    phase = (raw.get("status") or {}).get("phase", "Unknown")
    return Pod(node, int(metadata["labels"].get(names.RUN_LABEL, 0)), metadata["name"], metadata["uid"], phase)


def parsed(line: str, node: int) -> Line:
    """A line that the server has put a time in front of."""
    time, _, text = line.partition(" ")
    try:
        return Line(datetime.fromisoformat(time), node, text)
    except ValueError:  # a kubelet's own word about the log has no time
        return Line(datetime.fromtimestamp(0, UTC), node, line)


def merged(logs: Iterable[Iterable[Line]]) -> Iterator[Line]:
    """The lines of several pods in the order of their times; each pod's own order stays."""
    return heapq.merge(*logs, key=lambda line: line.time)


def shown(line: Line, *, raw: bool) -> str:
    """The line with its node in front; records in words, unless `raw`."""
    record = None if raw else report.parse(line.text)
    tag = click.style(f"[node {line.node}]", fg=COLOURS[line.node % len(COLOURS)])
    return f"{tag} {words.line(record) if record else line.text}"
