"""Stopping on a signal: all ranks stop after the same step.

The loop checks once per step. Signals reach the ranks at different moments; a rank that stopped on its own would
leave the others waiting in a collective, and save a checkpoint of a step that the others have not reached.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

import torch
import torch.distributed as dist

from .collectives import world_size

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequested(Exception):
    """All ranks stop after this step. The caller saves a checkpoint."""


_Handler = Callable[[int, FrameType | None], object] | int


class Stop:
    """Context in which SIGTERM and SIGINT request a stop. Main thread only, like signal.signal.

    A second signal of the same number has its previous effect, so that sending it twice ends the process at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first signal this rank has received."""
        self._before: dict[int, _Handler] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal) or signal.SIG_DFL
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def requested(self) -> bool:
        """Whether this rank has been asked to stop."""
        return self.signal is not None

    def requested_on_any_rank(self, device: torch.device) -> bool:
        """Whether any rank has been asked to stop. Collective; the answer is the same on every rank.

        `device` is where the process group computes: the rank's GPU under NCCL, the CPU under gloo.
        """
        if world_size() == 1:
            return self.requested()
        flag = torch.tensor(int(self.requested()), device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def check(self, device: torch.device) -> None:
        """Raise StopRequested on every rank if any rank has been asked to stop. Collective."""
        if self.requested_on_any_rank(device):
            raise StopRequested

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)
        signal.signal(number, self._before[number])
