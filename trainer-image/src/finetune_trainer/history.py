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
