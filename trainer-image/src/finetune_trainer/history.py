"""State of a run besides its weights: the losses for its final report, and its best step.

Saved with every checkpoint, so that a resumed run reports the same as an uninterrupted one.
"""

from __future__ import annotations

from pydantic import BaseModel


class History(BaseModel):
    """Losses are mean NLL per target token, in nats."""

    train_loss: float | None = None
    """Of the last step."""
    skipped_steps: int = 0
    """Steps that changed nothing, because their gradients overflowed with their loss scale."""
    evaluated_step: int | None = None
    """Steps done when the last evaluation ended."""
    initial: float | None = None
    """Validation loss before the first step."""
    latest: float | None = None
    """Validation loss of the last evaluation."""
    best: float | None = None
    best_step: int | None = None
    """The step with the lowest validation loss, excluding step 0 (the untrained model)."""
    validation_rows: str = ""
    """`Rows.digest` of those that the validation losses are of; empty if there are none or nothing recorded it."""
    note: str = ""
    """What was forgotten last and why, for the log and the final report."""

    def record_evaluation(self, step: int, loss: float) -> bool:
        """Record an evaluation after `step` steps; return whether it is the best so far."""
        self.evaluated_step, self.latest = step, loss
        if step == 0:
            self.initial = loss
            return False
        if self.best is not None and loss >= self.best:
            return False
        self.best, self.best_step = loss, step
        return True

    def validate_on(self, rows: str, step: int) -> bool:
        """Validate on the rows with this digest from `step` on; return whether losses of others were forgotten."""
        changed = self.validation_rows not in ("", rows)
        if changed:
            self.evaluated_step = self.initial = self.latest = self.best = self.best_step = None
            self.note = f"The validation rows changed before step {step}: losses of the former rows do not count."
        self.validation_rows = rows
        return changed

    def forget_best(self, step: int) -> None:
        """The weights of the best step are lost. The step resumed from takes its place, if it was evaluated."""
        self.note = f"The checkpoint of step {self.best_step}, the best so far, is lost: that step does not count."
        done = self.evaluated_step == step
        self.best, self.best_step = (self.latest, step) if done else (None, None)
