"""Trained parameters that the loss never reaches, named once. Used by the engines.

An architecture may have parts that text does not use, or that only choose among others. They would be trained on
nothing. Gradients of zero tell: those of adapters are zero until the first update, and others may be for a step.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from . import architecture

_log = logging.getLogger(__name__)
STEPS = 3
"""Steps with an update that a gradient has to be zero in."""


class Unreached:
    def __init__(self, names: Iterable[str], *, speaks: bool) -> None:
        """`speaks`: this rank writes the log."""
        self._names = list(names)
        self._speaks = speaks
        self._left = STEPS

    @property
    def asks(self) -> bool:
        """Whether anything is still in question."""
        return bool(self._names)

    def reached(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """fp64, a number for each parameter in question; 0 where this rank's part of the gradient is zero."""
        flags = [gradients[name].any() for name in self._names]
        return torch.stack(flags).double() if flags else torch.zeros(0, dtype=torch.float64)

    def after_step(self, reached: Sequence[float], *, skipped: bool) -> None:
        """`reached`: summed over ranks."""
        self._names = [name for name, found in zip(self._names, reached, strict=True) if not found]
        self._left -= not skipped
        if self._left > 0:
            return
        if self._names and self._speaks:
            _log.warning(
                "The loss does not depend on %s: no gradient in %d steps, so nothing but weight decay changes them.",
                ", ".join(architecture.patterns(self._names)), STEPS,
            )  # fmt: skip
        self._names = []
