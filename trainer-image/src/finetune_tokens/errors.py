"""Why rows cannot be turned into tokens. All are the input's fault, none is retried."""

from __future__ import annotations

from finetune_data import DatasetRefused


class TokenizerRefused(ValueError):
    """The model's folder has no tokenizer or chat template that can be used. Says reason and remedy."""


class StopTokenUntrained(DatasetRefused):
    """No target is a stop token: the model would never learn to end its answer."""
