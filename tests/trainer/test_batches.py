"""Rows become batches on a worker thread: in order, a few ahead, and with its errors raised in the loop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, fields

import numpy as np
import pytest
import torch

from finetune_trainer import batches
from finetune_trainer.collate import TokenBatch, collate
from finetune_trainer.rows import Rows
from finetune_trainer.sampler import Indices
from trainer import batches_work as work
from trainer.parity_cases import rows
from trainer.ranks import run_ranks, values

CPU = torch.device("cpu")
MICRO_BATCHES = [np.arange(start, min(start + 3, 20)) for start in range(0, 20, 3)] + [np.arange(0)]


@dataclass(frozen=True)
class ReadRows(Rows):
    """Rows that record what is read of them, by which thread, and lose one of them."""

    lost: int | None = None
    read: list[int] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def row(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        self.read.append(i)
        self.threads.add(threading.current_thread().name)
        if i == self.lost:
            raise OSError(f"row {i} cannot be read")
        return super().row(i)


def recorded(lost: int | None = None) -> ReadRows:
    data = rows(20)
    return ReadRows(**{f.name: getattr(data, f.name) for f in fields(data)}, lost=lost)


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("collate")]


def same(one: TokenBatch, other: TokenBatch) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_a_batch_has_its_rows_padded_on_the_right_and_the_places_of_its_targets() -> None:
    data = Rows(
        tokens=np.array([5, 6, 7, 8, 9, 1, 2, 3], np.int32),
        targets=np.array([0, 0, 1, 0, 1, 0, 1, 1], np.bool_),
        offsets=np.array([0, 5, 8]),
        lines=np.array([1, 2], np.int32),
    )
    batch = collate(data, [1, 0])
    assert batch.inputs.tolist() == [[1, 2, 0, 0], [5, 6, 7, 8]]
    assert (batch.targets.tolist(), batch.labels.tolist()) == ([0, 1, 5, 7], [2, 3, 7, 9])
    assert batch.positions.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert (batch.starts.tolist(), batch.starts.dtype, batch.longest) == ([0, 4, 8], torch.int32, 4)
    assert batch.weights is None


def test_a_batch_without_rows_is_one_token_without_targets() -> None:
    batch = collate(rows(1), [])
    assert (batch.inputs.tolist(), batch.starts.tolist(), batch.longest) == ([[0]], [0, 1], 1)
    assert len(batch.targets) == len(batch.labels) == 0


def test_batches_come_in_the_order_of_their_rows_from_one_other_thread() -> None:
    data = recorded()
    found = list(batches.collated(data, MICRO_BATCHES, CPU))
    assert data.read == list(range(20))
    assert data.threads == {"collate_0"}
    assert all(same(a, collate(data, b)) for a, b in zip(found, MICRO_BATCHES, strict=True))


def test_no_more_than_two_batches_wait() -> None:
    asked = []

    def cut() -> Iterator[Indices]:
        for number, indices in enumerate(MICRO_BATCHES):
            asked.append(number)
            yield indices

    with closing(batches.collated(rows(20), cut(), CPU)) as coming:
        for taken, _ in zip(range(1, 4), coming, strict=False):
            assert len(asked) == taken + batches.AHEAD


def test_an_error_of_the_worker_is_raised_in_the_place_of_its_batch() -> None:
    coming = batches.collated(recorded(lost=7), MICRO_BATCHES, CPU)
    assert [len(next(coming).inputs) for _ in range(2)] == [3, 3]
    with pytest.raises(OSError, match="row 7 cannot be read") as caught:
        next(coming)
    assert "row" in [entry.name for entry in caught.traceback], "the traceback says where"
    assert workers() == []


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_the_thread_ends_with_the_loop(taken: int) -> None:
    with closing(batches.collated(rows(20), MICRO_BATCHES, CPU)) as coming:
        for _ in range(taken):
            next(coming)
    assert workers() == []


@pytest.mark.parametrize("ending", work.ENDINGS)
def test_a_run_that_ends_leaves_no_thread(ending: str) -> None:
    during, after = values(run_ranks(1, work.threads, ending))[0]
    assert during == ["collate_0"]
    assert after == []


def test_every_step_gets_the_micro_batches_of_its_rows() -> None:
    expected, found = values(run_ranks(1, work.inputs_by_step))[0]
    assert found == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_waits_for_the_device_only_to_read_its_outcome(precision: str) -> None:
    assert values(run_ranks(1, work.waits_of_a_step, precision)) == [[]]
