"""What the base model is to transformers, and which parts of it are trained. Called by model.py.

A multimodal model is loaded whole, by the class that it was saved from: its class for text alone has other names for
the weights, and a result without the other parts would no longer be that model. Rows are text, so nothing but the
language model gets gradients; the other parts (vision, audio, what projects them) are frozen.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import build_glob_alternation
from transformers.pytorch_utils import Conv1D

from .errors import ModelRefused
from .quantised_layer import QuantisedLinear

MAGNITUDES = "lora_magnitude_vector"
"""PEFT's name for what DoRA trains beside A and B."""
ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
"""Parts of names of modules that choose among experts, and of others."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def auto_class(settings: PreTrainedConfig) -> Any:
    """The class of transformers that makes the model of these settings. Raises ModelRefused if there is none.

    Of several, it is the one that makes what the settings name as their architecture.
    """
    classes: tuple[Any, ...] = (AutoModelForCausalLM, AutoModelForMultimodalLM)
    known = {each: each._model_mapping.get(type(settings), None) for each in classes}  # noqa: SLF001
    if settings.is_encoder_decoder:
        known[AutoModelForMultimodalLM] = None
    possible = [each for each, made in known.items() if made is not None]
    for each in possible:
        if known[each].__name__ in (settings.architectures or ()):
            return each
    if not possible:
        raise ModelRefused(
            f"transformers {transformers.__version__} has no causal language model of the type {settings.model_type} "
            f"(model_type in config.json); choose a model that generates text without a separate encoder"
        )
    return possible[0]


def model_class(settings: PreTrainedConfig) -> Any:
    """The class that `auto_class` would make. Raises ModelRefused if there is none."""
    return auto_class(settings)._model_mapping[type(settings)]  # noqa: SLF001


def freeze_other_parts(model: PreTrainedModel) -> None:
    """Freeze everything but the language model."""
    for name in other_parts(model):
        model.get_submodule(name).requires_grad_(False)


def other_parts(model: PreTrainedModel) -> list[str]:
    """Names of the largest modules that have no part of the language model; none if it is all of the model."""
    if model.config.get_text_config() is model.config:
        return []
    language = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[no-untyped-call]
    parameters = {p for module in language if module is not None for p in module.parameters()}
    return list(_without(model, parameters))


def _without(module: nn.Module, parameters: set[nn.Parameter], prefix: str = "") -> Iterator[str]:
    for name, child in module.named_children():
        own = set(child.parameters())
        if own and not own & parameters:
            yield prefix + name
        elif own - parameters:
            yield from _without(child, parameters, f"{prefix}{name}.")


def ends(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Embedding and output head of the language model, by name."""
    found = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[no-untyped-call]
    return {name: module for name, module in model.named_modules() if any(module is end for end in found)}


def linear(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Linear modules of the language model."""
    others = tuple(f"{part}." for part in other_parts(model))
    return {
        name: module for name, module in model.named_modules() if not name.startswith(others) and _is_linear(module)
    }


def _is_linear(module: nn.Module) -> bool:
    """Whether it computes a matrix product: some routers are of a subclass of nn.Linear that gives something else."""
    if type(module).forward in (nn.Linear.forward, Conv1D.forward, QuantisedLinear.forward):
        return True
    if not isinstance(module, nn.Linear):
        return False
    small, numbers = copy.copy(module), torch.tensor([[1.0, -2.0]])
    bias = None if module.bias is None else nn.Parameter(torch.ones(3))
    small._parameters = {"weight": nn.Parameter(torch.arange(6.0).view(3, 2)), "bias": bias}  # noqa: SLF001
    try:
        found = small(numbers)
    except Exception:  # noqa: BLE001 - it takes something else, or more
        return False
    return isinstance(found, Tensor) and torch.equal(found, nn.Linear.forward(small, numbers))


def kept_in_fp32(model: nn.Module, names: Iterable[str], dtype: torch.dtype) -> set[str]:
    """Those of `names` that stay in fp32 where the model is in `dtype`: routers of some, the lengths of DoRA."""
    plan = model._get_dtype_plan(dtype) if isinstance(model, PreTrainedModel) else {}  # noqa: SLF001
    kept, *_ = build_glob_alternation([*plan, MAGNITUDES])
    return {name for name in names if kept.search(name)}


def cast_buffers(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give the buffers of a model in fp32 the formats that they have where it is loaded in `dtype`.

    Some architectures compute with them without a cast. What is published is in `exact_buffers`.
    """
    with torch.device("meta"):
        settings = copy.deepcopy(model.config)
        made = dict(auto_class(settings).from_config(settings, dtype=dtype).named_buffers())
    buffers = dict(model.named_buffers())
    rounded = {name for name, like in made.items() if like.dtype == dtype != buffers[name].dtype}
    rounded -= kept_in_fp32(model, rounded, dtype)
    kept = model.state_dict().keys()
    model.exact_buffers = {name: buffers[name].data for name in rounded if name in kept}  # type: ignore[assignment]
    for name in rounded:
        buffers[name].data = buffers[name].data.to(dtype)


def exact_buffers(model: PreTrainedModel) -> dict[str, Tensor]:
    """Persistent buffers as they were before `cast_buffers`, by name."""
    return getattr(model, "exact_buffers", {})


def router_loss(model: PreTrainedModel) -> float | None:
    """Factor of the loss that keeps experts evenly used; 0 if config.json does not ask for it, None without experts.

    Architectures whose routers are balanced otherwise, such as DeepSeek-V3, have none.
    """
    settings = model.config.get_text_config()
    factor = getattr(settings, "router_aux_loss_coef", None)
    return factor if factor is None or getattr(settings, "output_router_logits", False) else 0.0


def without_router_loss(model: PreTrainedModel) -> None:
    if router_loss(model):
        model.config.get_text_config().output_router_logits = False


def have_routers(names: Iterable[str]) -> bool:
    """Whether a weight of these names is of what chooses among experts."""
    return any(not ROUTERS.isdisjoint(name.split(".")) for name in names)


def patterns(names: Iterable[str]) -> list[str]:
    """Names of weights, those of all layers as one."""
    return list(dict.fromkeys(_NUMBER.sub("*", name.removesuffix(".weight")) for name in names))
