"""Lines of pods' logs: which pod wrote them, when, and how they are shown. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

import click

from finetune_api.resource import names
from finetune_api.runtime import report
from finetune_cli.errors import KEPT, printable
from finetune_cli.local.format_record import format_record
from finetune_plan.backends import DEFAULT as BACKEND

from .api_client import Json

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


class LogPod(NamedTuple):
    """A pod of a run, as far as its log is concerned."""

    node: int
    """Node rank, from 0."""
    run: int
    name: str
    uid: str
    phase: str

    @property
    def has_ended(self) -> bool:
        return self.phase in ("Succeeded", "Failed")


class LogLine(NamedTuple):
    """A line of a log."""

    time: datetime
    node: int
    text: str


def log_pod(pod: Json) -> LogPod:
    """From a Pod object."""
    metadata = pod["metadata"]
    node = BACKEND.node_rank(pod)
    phase = (pod.get("status") or {}).get("phase", "Unknown")
    return LogPod(node, int(metadata["labels"].get(names.RUN_LABEL, 0)), metadata["name"], metadata["uid"], phase)


def parse(line: str, node: int) -> LogLine:
    """A line with the server's timestamp in front."""
    time, _, text = line.partition(" ")
    try:
        return LogLine(datetime.fromisoformat(time), node, text)
    except ValueError:  # a message of the kubelet about the log has no timestamp
        return LogLine(datetime.fromtimestamp(0, UTC), node, line)


def merge(logs: Iterable[Iterable[LogLine]]) -> Iterator[LogLine]:
    """The lines of several pods in order of time; the order within each pod is kept."""
    return heapq.merge(*logs, key=lambda line: line.time)


def format_line(line: LogLine, *, raw: bool) -> str:
    """The line with its node in front; records formatted, unless `raw`."""
    record = None if raw else report.parse(line.text)
    tag = click.style(f"[node {line.node}]", fg=COLOURS[line.node % len(COLOURS)])
    return f"{tag} {printable(format_record(record) if record else line.text, KEPT)}"
