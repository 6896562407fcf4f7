"""Figures of a bench, their limits, and what the kernel knows of a process and of the machine."""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Figure:
    """One line of the table. A figure without a limit is only told."""

    name: str
    value: float
    unit: str
    most: float | None = None
    least: float | None = None

    @property
    def missed(self) -> bool:
        too_much = self.most is not None and self.value > self.most
        return too_much or (self.least is not None and self.value < self.least)

    def __str__(self) -> str:
        verdict = "" if not self._bound else ("MISSED" if self.missed else "ok")
        number = f"{self.value:.0f}" if self.value == int(self.value) else f"{self.value:.3g}"
        return f"{self.name:<58} {number:>8} {self.unit:<8} {self._bound:<16} {verdict}".rstrip()

    @property
    def _bound(self) -> str:
        if self.least is None:
            return "" if self.most is None else f"at most {self.most:g}"
        if self.most is None:
            return f"at least {self.least:g}"
        return f"exactly {self.least:g}" if self.least == self.most else f"{self.least:g} to {self.most:g}"


def tell(parts: Mapping[str, Callable[[], Iterable[Figure]]]) -> int:
    """Print the figures of all parts; the exit code is 1 if a limit was missed."""
    missed = 0
    for name, figures in parts.items():
        began = time.monotonic()
        try:
            for figure in figures():
                print(figure, flush=True)
                missed += figure.missed
        except Exception:  # noqa: BLE001 - a machine is lent by the minute: the other parts run all the same
            traceback.print_exc()
            missed += 1
        print(f"({name}: {time.monotonic() - began:.0f} s)", flush=True)
    print(f"Missed: {missed}." if missed else "All limits are kept.")
    return int(missed > 0)


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time that processes have taken so far."""
    fields = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
    return sum(int(f[11]) + int(f[12]) for f in fields) / TICKS


def machine() -> str:
    """Where and under which load figures were taken."""
    load = ", ".join(f"{minutes:.1f}" for minutes in os.getloadavg())
    cores = len(os.sched_getaffinity(0))
    return f"{platform.machine()}, {cores} of {os.cpu_count()} cores, Python {platform.python_version()}, load {load}"
