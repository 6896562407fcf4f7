"""What ranks do in the tests of stopping."""

from __future__ import annotations

import os
import signal

import torch

from finetune_trainer.collectives import rank
from finetune_trainer.stop import Stop

CPU = torch.device("cpu")


def steps_until_stop(victim: int, at: int, number: signal.Signals) -> int:
    """Steps done when the loop ends; rank `victim` is sent the signal during step `at`."""
    with Stop() as stop:
        for step in range(1, 10):
            if step == at and rank() == victim:
                os.kill(os.getpid(), number)
            if stop.requested_on_any_rank(CPU):
                return step
    return 0


def signal_twice(number: signal.Signals) -> bool:
    with Stop() as stop:
        os.kill(os.getpid(), number)
        assert stop.requested_on_any_rank(CPU)
        os.kill(os.getpid(), number)
        return stop.requested_on_any_rank(CPU)


def interrupt_then_terminate() -> bool:
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return stop.requested_on_any_rank(CPU)
