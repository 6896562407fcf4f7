"""How far a file is on its way: a bar on a terminal, lines in a log, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

LINE_SECONDS = 10.0

Moved = Callable[[int], None]
"""Hears how many bytes have arrived in all."""


@contextmanager
def meter(what: str, total: int, *, quiet: bool) -> Iterator[Moved]:
    """Show progress while the context lasts."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar(what, total) as moved:
            yield moved
    else:
        click.echo(f"{what}: {size(total)}", err=True)
        yield _lines(what, total)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Moved]:
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def _lines(what: str, total: int) -> Moved:
    told = time.monotonic()

    def moved(done: int) -> None:
        nonlocal told
        if time.monotonic() - told >= LINE_SECONDS:
            told = time.monotonic()
            click.echo(f"{what}: {size(done)} of {size(total)}", err=True)

    return moved


def size(count: int) -> str:
    """17 B, 4.0 KiB, 1.2 GiB."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{count} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
