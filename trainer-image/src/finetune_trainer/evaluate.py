"""Mean negative log likelihood per target token of the validation rows. Called by the evaluation hook."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist

from .batches import Layout
from .collate import collate
from .engines import Engine
from .environment import Place
from .errors import NonFinite
from .rows import Rows
from .stop import Stop


def mean_nll(engine: Engine, rows: Rows, layout: Layout, place: Place, stop: Stop) -> float:
    """In nats. Collective: each rank takes its share of the rows, every token weighs the same.

    Rows of similar length share a batch, which the mean does not notice and the padding does. Raises NonFinite,
    and StopRequested between two batches: an evaluation may last longer than a pod is given to end.
    """
    by_length = np.argsort(rows.lengths, kind="stable")
    total = torch.zeros((), dtype=torch.float64, device=place.device)
    for micro in layout.micro_batches(by_length, place.rank):
        stop.check(place.device)
        total += engine.evaluate(collate(rows, micro))
    dist.all_reduce(total)
    mean = float(total) / int(rows.target_counts.sum())
    if not math.isfinite(mean):
        raise NonFinite(
            f"the validation loss is {mean}: the weights have grown beyond what the number format holds; lower "
            "hyperparameters.learning_rate, or set max_grad_norm"
        )
    return mean
