"""When hooks are due, and the history of a run."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from finetune_trainer.history import History
from finetune_trainer.hooks import Stopping, count_due, due
from finetune_trainer.loop import StepResult
from finetune_trainer.sampler import Sampler
from finetune_trainer.stop import StopRequested

SAMPLER = Sampler(rows=10, rows_per_step=4, epochs=3, max_steps=8, shuffle=True, seed=0)


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        pytest.param(0, [3, 6, 8], id="0 means at the end of every epoch, and at the last step"),
        pytest.param(5, [5, 8], id="every 5 steps, and at the last step"),
        pytest.param(4, [4, 8], id="the last step once, if it is one of them"),
        pytest.param(100, [8], id="never before the last step"),
    ],
)
def test_due(every: int, steps: list[int]) -> None:
    assert [step for step in range(1, 9) if due(step, every, SAMPLER)] == steps


@pytest.mark.parametrize("intervals", [(0,), (1,), (5,), (4,), (100,), (0, 3), (2, 4), (2, 3), (5, 6), (7, 0)])
def test_steps_that_are_due_are_counted_once(intervals: tuple[int, ...]) -> None:
    for after in range(9):
        steps = [s for s in range(after + 1, 9) if any(due(s, each, SAMPLER) for each in intervals)]
        assert count_due(after, intervals, SAMPLER) == len(steps), after


@pytest.mark.parametrize(
    ("step", "asked", "stops"),
    [
        pytest.param(7, True, True, id="after this step"),
        pytest.param(7, False, False, id="only if a rank was asked"),
        pytest.param(8, True, False, id="not after the last step: the run is about to finish"),
    ],
)
def test_a_stop_ends_the_run(step: int, asked: bool, stops: bool) -> None:
    result = StepResult(step, loss=1.0, grad_norm=1.0, learning_rate=1e-3, tokens=1, seconds=1.0, stop=asked)
    with pytest.raises(StopRequested) if stops else nullcontext():
        Stopping(SAMPLER)(result)


def test_the_lowest_validation_loss_is_the_best_and_the_first_of_equals_stays() -> None:
    history = History()
    assert [history.record_evaluation(s, loss) for s, loss in [(2, 2.0), (4, 1.5), (6, 1.5), (8, 1.7)]] == [
        True, True, False, False,
    ]  # fmt: skip
    assert (history.best_step, history.best, history.latest) == (4, 1.5, 1.7)


def test_the_untrained_model_is_never_the_best() -> None:
    history = History()
    assert not history.record_evaluation(0, 1.0)
    assert history.record_evaluation(2, 1.2)
    assert (history.initial, history.best_step) == (1.0, 2)


TRAINED = History(
    train_loss=1.0, evaluated_step=8, initial=3.0, latest=1.5, best=1.2, best_step=4, validation_rows="sha256:1"
)


@pytest.mark.parametrize(
    ("resumed", "best", "best_step"),
    [
        pytest.param(8, 1.5, 8, id="the step resumed from takes its place if it was evaluated"),
        pytest.param(9, None, None, id="else the next evaluation is the best"),
    ],
)
def test_a_best_step_whose_weights_are_lost_is_forgotten(
    resumed: int, best: float | None, best_step: int | None
) -> None:
    history = TRAINED.model_copy()
    history.forget_best(resumed)
    assert (history.best, history.best_step, history.latest) == (best, best_step, 1.5)
    assert "The checkpoint of step 4, the best so far, is lost" in history.note


@pytest.mark.parametrize(
    ("recorded", "changed"),
    [
        pytest.param("sha256:1", False, id="the same rows"),
        pytest.param("", False, id="a checkpoint that does not say which rows"),
        pytest.param("sha256:0", True, id="other rows"),
    ],
)
def test_losses_of_other_validation_rows_are_forgotten(recorded: str, changed: bool) -> None:
    history = TRAINED.model_copy(update={"validation_rows": recorded})
    assert history.validate_on("sha256:1", 9) == changed
    forgotten = History(train_loss=1.0, validation_rows="sha256:1", note=history.note)
    assert history == (forgotten if changed else TRAINED)
    assert ("The validation rows changed before step 9" in history.note) == changed


def test_the_history_survives_a_checkpoint() -> None:
    history = History(train_loss=1.0, initial=3.0, latest=1.2, best=1.1, best_step=4)
    assert History.model_validate(history.model_dump()) == history
