"""Rows per forward pass, and forward passes per optimizer step.

    per_device_batch (or batch_size)  the micro batch; 1 if absent
    gradient_accumulation_steps       honoured where given
    global_batch                      sets what of the two is absent; where both are given it is a check

rows per step = per_device x accumulation x data_parallel. The seeds' own files contradict their
global_batch, so a mismatch is noted in the status and never refused.
"""

from __future__ import annotations

from typing import NamedTuple

from finetune_api.resource import reasons

from .job_settings import BatchSettings
from .notes import Note, note


class BatchSize(NamedTuple):
    """Rows of one forward pass on one replica, and forward passes per optimizer step."""

    per_device: int
    accumulation: int


def resolve_batch(given: BatchSettings, data_parallel: int) -> tuple[BatchSize, tuple[Note, ...]]:
    """The batch, and a note if global_batch differs from it."""
    micro, accumulation, target = given.per_device.value, given.accumulation.value, given.global_batch.value
    if target and accumulation is None:
        accumulation = max(1, target // ((micro or 1) * data_parallel))
    elif target and micro is None:
        micro = max(1, target // ((accumulation or 1) * data_parallel))
    batch = BatchSize(per_device=micro or 1, accumulation=accumulation or 1)
    rows = batch.per_device * batch.accumulation * data_parallel
    if target in (None, rows):
        return batch, ()
    values = {"target": target, "replicas": data_parallel, "rows": rows, **batch._asdict()}
    return batch, (note(reasons.GLOBAL_BATCH_DIFFERS, key=given.global_batch.key, **values),)
