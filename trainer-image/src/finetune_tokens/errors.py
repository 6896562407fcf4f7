"""Reasons why rows cannot be tokenised. All are input errors; none is retried."""

from __future__ import annotations

from finetune_data import DatasetRefused


class TokenizerRefused(ValueError):
    """The model's folder has no usable tokenizer or chat template. The message has reason and remedy."""


class StopTokenUntrained(DatasetRefused):
    """No target is a stop token: the model would not learn to end its answer."""
