"""Which matrices of a frozen base are stored in few bits, and the layers that compute with them.

Chosen are the linear layers of the language model. Its output head and embedding, routers, what an architecture keeps
in fp32, mixers with a convolution, which give their weights to kernels, and other parts (vision) stay in the compute
format. Called by model.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune_api.runtime.run_config import BaseQuantisation

from . import architecture, placeholders, quantised_layer, whole_modules
from .errors import ModelRefused
from .placeholders import Keep, See
from .quantised_layer import QuantisedLinear, Scales

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Keys of config.json: a router has as many outputs."""
_GIB = 2**30


def chosen(model: PreTrainedModel, whole: Collection[str] = ()) -> dict[str, nn.Linear]:
    """The layers by name, none in the modules of `whole`.

    Raises ModelRefused if there are none, or if most of the model would not be quantised.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tied = {model.get_parameter_or_buffer(n) for pair in _tied(model).items() for n in pair}
    found = {
        name: module
        for name, module in architecture.linear(model).items()
        if isinstance(module, nn.Linear) and module is not head and module.weight not in tied
        and not _is_router(model, name, module) and not _is_of_mixer(model, name)
        and not whole_modules.contains(whole, name)
    }  # fmt: skip
    kept = architecture.kept_in_fp32(model, [f"{name}.weight" for name in found], torch.bfloat16)
    found = {name: module for name, module in found.items() if f"{name}.weight" not in kept}
    _require_worthwhile(model, found)
    return found


def _is_router(model: PreTrainedModel, name: str, layer: nn.Linear) -> bool:
    """By its name, and an output for each expert, or one for those that all tokens are sent to."""
    settings: Any = model.config.get_text_config()
    outputs = [1, *(getattr(settings, key, None) for key in _EXPERTS)]
    return layer.out_features in outputs and not architecture.ROUTERS.isdisjoint(name.split("."))


def _is_of_mixer(model: PreTrainedModel, name: str) -> bool:
    """Whether a linear layer is beside a convolution, as in Mamba and its relatives."""
    beside = model.get_submodule(name.rpartition(".")[0])
    return any(isinstance(child, nn.Conv1d) for child in beside.children())


def _tied(model: PreTrainedModel) -> Mapping[str, str]:
    return getattr(model, "all_tied_weights_keys", {})


def _require_worthwhile(model: PreTrainedModel, found: Mapping[str, nn.Linear]) -> None:
    convolutions = {m.weight for m in model.modules() if isinstance(m, nn.Conv1d)}
    others = tuple(f"{part}." for part in architecture.other_parts(model))
    fused = {name: p for name, p in model.named_parameters()
             if p.ndim > 2 and p not in convolutions and not name.startswith(others)}  # fmt: skip
    size, whole = (sum(p.numel() for p in each) for each in (fused.values(), model.parameters()))
    if size > whole / 10:
        largest = max(fused, key=lambda name: fused[name].numel())
        raise ModelRefused(
            f"training.use_qlora: {model.config.model_type} keeps matrices of a layer, as those of experts, in one "
            f"parameter ({architecture.patterns([largest])[0]}), which this version does not quantise: "
            f"{size / whole:.0%} of the base, {2 * size / _GIB:.3g} GiB, would stay in 16 bits; train adapters on "
            "the base as it is (training.mode: lora, use_qlora: false) with hyperparameters.parallelism.fsdp, or "
            "choose another model"
        )
    if not found:
        raise ModelRefused(
            f"training.use_qlora: {model.config.model_type} has no linear layers that could be quantised; train "
            "adapters on the base as it is (training.mode: lora, use_qlora: false)"
        )


class Quantising:
    """Keeps the weights of chosen layers as codes while a model is loaded, and then puts layers in place of them."""

    def __init__(
        self,
        outline: PreTrainedModel,
        how: BaseQuantisation,
        keep: Keep,
        see: See | None,
        device: torch.device,
        whole: Collection[str] = (),
    ) -> None:
        """`outline`: the model without memory; `whole`: modules that are trained in full.

        Whole weights are quantised on `device`, alike on every rank.
        """
        self._how, self._keep, self._see, self._device = how, keep, see, device
        self._weights = {f"{name}.weight" for name in chosen(outline, whole)}
        self._found: dict[str, tuple[int, Scales]] = {}

    def keep(self, name: str, weight: Tensor) -> Tensor:
        """What this rank keeps of a weight, or of its codes."""
        if name not in self._weights:
            if self._see is not None:
                self._see(name, weight)
            return self._keep(weight)
        try:
            codes, scales = quantised_layer.quantise(weight.to(self._device), self._how)
        except ValueError as error:
            raise ModelRefused(f"job.model: {name} cannot be stored in {self._how.format}: {error}") from error
        if self._see is not None:
            self._see(name, quantised_layer.whole(codes, scales, self._how, weight.shape, weight.dtype))
        self._found[name] = len(codes), scales
        return self._keep(codes)

    def install(self, model: PreTrainedModel) -> None:
        """Replace the chosen layers of `model`, whose weights are placeholders."""
        assert self._found.keys() == self._weights, f"not quantised: {sorted(self._weights - self._found.keys())}"
        for name, (length, scales) in self._found.items():
            layer = model.get_submodule(name.removesuffix(".weight"))
            part = placeholders.take(layer.get_parameter("weight"))
            assert part is not None
            codes = placeholders.of(part, torch.Size([length]), part.dtype, requires_grad=False)
            _replace(model, name.removesuffix(".weight"), codes, scales, self._how)


def quantise(model: PreTrainedModel, how: BaseQuantisation, whole: Collection[str] = ()) -> None:
    """Replace the chosen layers of `model`, none in the modules of `whole`.

    It may be on the meta device, but has no placeholders.
    """
    for name, layer in chosen(model, whole).items():
        codes, scales = quantised_layer.quantise(layer.weight.detach(), how)
        _replace(model, name, nn.Parameter(codes, requires_grad=False), scales, how)


def _replace(model: PreTrainedModel, name: str, codes: nn.Parameter, scales: Scales, how: BaseQuantisation) -> None:
    layer: Any = model.get_submodule(name)
    model.set_submodule(name, QuantisedLinear(layer, codes, scales, how).train(layer.training))
