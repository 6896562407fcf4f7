"""Batches of the training loop and of evaluation: a thread collates them while those before are computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from .collate import TokenBatch, collate
from .rows import Rows
from .sampler import Indices

AHEAD = 2
"""Batches collated ahead: one hides the time of collation, the second a row that takes longer to read."""


def collated(rows: Rows, micro_batches: Iterable[Indices], device: torch.device) -> Generator[TokenBatch, None, None]:
    """The batches of `micro_batches`, in their order. An error of the worker is raised in the place of its batch.

    The thread ends with the generator: close it (contextlib.closing) unless it is exhausted.
    """

    def work(indices: Indices) -> TokenBatch:
        batch = collate(rows, indices)
        return batch.pinned() if device.type == "cuda" else batch

    coming: deque[Future[TokenBatch]] = deque()
    with ThreadPoolExecutor(1, "collate") as worker:
        for indices in micro_batches:
            coming.append(worker.submit(work, indices))
            if len(coming) > AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
