"""Causal attention under a name of our own in transformers' registry. Called by model.py once a model is loaded.

There is no mask function of this name, so transformers builds no masks: it would look for packed sequences in every
forward pass, and make the CPU wait for the answer. What a layer needs is in its arguments, as for flash attention.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "finetune"

_BY_NAME = re.compile(r'_attn_implementation (==|in) .*"sdpa"')

_log = logging.getLogger(__name__)


def use(model: PreTrainedModel) -> None:
    """Let `model` call `attend` if it can; say so if it keeps its own."""
    given = model.config._attn_implementation  # noqa: SLF001
    if not replace(model):
        _log.warning("%s keeps the attention of transformers (%s)", type(model).__name__, given)


def replace(model: PreTrainedModel) -> bool:
    """Let `model` call `attend`, unless it needs more than causal attention with a window; whether it does.

    Such are models that cap their attention scores (Gemma 2), add sinks (gpt-oss), choose keys by content, attend
    in chunks (Llama 4) or also to images. transformers has those without SDPA, without flash attention, or with
    configurations of their parts.
    """
    anything: Any = model  # what a model supports is in private attributes
    given = anything.config._attn_implementation  # noqa: SLF001
    able = given == "sdpa" and anything._supports_flash_attn and not model.config.sub_configs  # noqa: SLF001
    if not (able and anything._can_set_attn_implementation() and _only_calls_it(model)):  # noqa: SLF001
        return False
    model.set_attn_implementation(NAME)
    return True


def _only_calls_it(model: PreTrainedModel) -> bool:
    """Whether the model does nothing else for SDPA by name, and its layers pass on their window, if there is one.

    Gemma 4 does the first; PhiMoE and Qwen2-MoE have their window in the mask only. Nothing but the source says so;
    transformers finds out in the same way whether an attention can be replaced.
    """
    source = inspect.getsource(sys.modules[type(model).__module__])
    windowed = getattr(model.config, "sliding_window", None) is not None
    return not _BY_NAME.search(source) and ("sliding_window=" in source or not windowed)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """torch's SDPA over the whole row. Only a window that is shorter than the row needs a mask."""
    window, length = settings.get("sliding_window"), query.shape[2]
    if attention_mask is None and window is not None and window < length:
        attention_mask = _window(length, window, query.device)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)


@lru_cache(maxsize=1)  # the layers of a forward pass have the same
def _window(length: int, window: int, device: torch.device) -> Tensor:
    """bool [1, 1, length, length]: each token sees itself and the `window` - 1 tokens before it."""
    positions = torch.arange(length, device=device)
    distances = positions[:, None] - positions
    return ((distances >= 0) & (distances < window))[None, None]


AttentionInterface.register(NAME, attend)
