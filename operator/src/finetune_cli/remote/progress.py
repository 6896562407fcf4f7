"""Progress of a transfer: a bar on a terminal, lines in a log, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

LINE_SECONDS = 10.0

OnProgress = Callable[[int], None]
"""Called with the number of bytes that have arrived in total."""


@contextmanager
def progress(title: str, total: int, *, quiet: bool) -> Iterator[OnProgress]:
    """Show the progress of a transfer of `total` bytes while the context lasts."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar(title, total) as update:
            yield update
    else:
        click.echo(f"{title}: {format_size(total)}", err=True)
        yield _lines(title, total)


@contextmanager
def _bar(title: str, total: int) -> Iterator[OnProgress]:
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


def _lines(title: str, total: int) -> OnProgress:
    printed_at = time.monotonic()

    def update(done: int) -> None:
        nonlocal printed_at
        if time.monotonic() - printed_at >= LINE_SECONDS:
            printed_at = time.monotonic()
            click.echo(f"{title}: {format_size(done)} of {format_size(total)}", err=True)

    return update


def format_size(count: int) -> str:
    """17 B, 4.0 KiB, 1.2 GiB."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{count} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
