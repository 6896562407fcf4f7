"""Mean negative log likelihood per target token of the validation rows. Called by the evaluation hook."""

from __future__ import annotations

import math
from contextlib import closing

import numpy as np
import torch

from . import batches
from .errors import NonFinite
from .loop import TrainState, remedy
from .rows import Rows
from .stop import Stop


def mean_nll(train_state: TrainState, rows: Rows, stop: Stop, steps: int) -> float:
    """In nats, after `steps` optimizer steps. Collective: each rank evaluates its share; every token weighs the same.

    Rows of similar length share a batch: that saves padding and does not change the mean. Raises NonFinite, and
    StopRequested between two batches: an evaluation may take longer than a pod's termination grace period.
    """
    device = train_state.mesh.rank_info.device
    by_length = np.argsort(rows.lengths, kind="stable")
    total = torch.zeros((), dtype=torch.float64, device=device)
    cut = train_state.sharding.micro_batches(by_length, train_state.mesh.data_rank)
    with closing(batches.collated(rows, cut, device)) as coming:
        for batch in coming:
            stop.check(device)
            total += train_state.engine.evaluate(batch)
            train_state.heartbeat.advance()
    train_state.mesh.sum_over_data(total)
    mean = float(total) / int(rows.target_counts.sum())
    if not math.isfinite(mean):
        raise NonFinite(f"the validation loss after {steps} steps is {mean}; {remedy(train_state.config, steps)}")
    return mean
