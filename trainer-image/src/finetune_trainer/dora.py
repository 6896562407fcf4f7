"""DoRA: y = m · (W x + s · B A dropout(x)) / |W + s · B A| + b, the lengths by row (Liu et al. 2024, 2402.09353).

The length m of each row of a weight is trained apart from its direction. m and the quotient are fp32 and the result
is rounded once: in bf16 the first updates of m would not be seen otherwise. No gradient goes through the divisor, as
in section 4.3 of the paper, and no matrix of the size of W is made.

Layers are PEFT's in everything else: their names, parameters and files. Called by adapters.py and model.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import dora
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from . import architecture, placeholders
from .errors import ModelRefused
from .lora_forward import Factors, LoraLinear, dropped_input, gradients

_LENGTHS = "_lengths_of_rows"
_LISTED = 5
"""Layers that a refusal names."""


def lengths_of_rows(weight: Tensor) -> Tensor:
    """[out] of [out, in], in fp32 or the format of `weight` if that is wider."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    found: Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=dtype)
    return found


class LengthsOfRows:
    """Sees the whole weights of linear layers while a model is loaded, of which a rank keeps parts only."""

    def __init__(self, outline: PreTrainedModel, device: torch.device) -> None:
        """`outline`: the model without memory."""
        self._transposed = {
            f"{name}.weight": isinstance(m, Conv1D) for name, m in architecture.linear(outline).items()
        }
        self._device, self._found = device, dict[str, Tensor]()

    def see(self, name: str, weight: Tensor) -> None:
        if name in self._transposed:
            whole = weight.to(self._device)
            self._found[name] = lengths_of_rows(whole.t() if self._transposed[name] else whole).cpu()

    def give(self, model: PreTrainedModel) -> None:
        """Leave them at the layers of `model`, for their adapters."""
        for name, lengths in self._found.items():
            setattr(model.get_submodule(name.removesuffix(".weight")), _LENGTHS, lengths)


def require_possible(model: PreTrainedModel, targets: Sequence[str], begun: str = "") -> None:
    """Raises ModelRefused, on every rank alike, for layers that cannot be trained so.

    `begun` is the folder of the adapter that training continues from, whose layers and DoRA no key changes.
    """
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    layers = {name: model.get_submodule(name) for name in targets}
    if any(layer is head for layer in layers.values()):
        raise _impossible(
            "the output head computes in parts, and the lengths of its rows would not be trained", "the head", begun
        )
    if getattr(model.config.get_text_config(), "clip_qkv", None) is not None:
        reason = f"{model.config.model_type} changes the results of its layers in place (clip_qkv in config.json)"
        raise _impossible(reason, "", begun)
    lengths = {name: vars(layer).get(_LENGTHS) for name, layer in layers.items()}
    without = [name for name, each in lengths.items() if each is not None and not each.all()]
    if without:
        more = " and more" * (len(without) > _LISTED)
        named = f"{', '.join(without[:_LISTED])}{more}"
        raise _impossible(f"{named} have rows of zeros, which have no direction", "them", begun)


def _impossible(reason: str, layers: str, begun: str) -> ModelRefused:
    """`layers` are those without which it would be possible; empty if there are none."""
    if begun:
        remedy = f"name another adapter than {begun}, which has DoRA, or train it further with PEFT"
        return ModelRefused(f"training.lora.from: {reason}; {remedy}")
    leave = f"leave {layers} out of training.lora.target_modules, or " * bool(layers)
    return ModelRefused(f"training.lora.use_dora: {reason}; {leave}set use_dora to false")


class Magnitude(dora.DoraLinearLayer):
    """m [out] of a layer, which is trained and kept in fp32."""

    def __init__(self, lengths: Tensor) -> None:
        super().__init__(fan_in_fan_out=False)  # type: ignore[no-untyped-call]
        self.weight = nn.Parameter(lengths)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """m; with the arguments of PEFT's layer, what that computes."""
        if args or kwargs:
            result: Tensor = super().forward(*args, **kwargs)  # type: ignore[no-untyped-call]
            return result
        return self.weight.clone()  # an engine may take the weight away after this call


class _Variant(DoraLinearVariant):
    """PEFT's, which would compute m from a weight that this rank may not have."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        base = module.get_base_layer()
        lengths = vars(base).pop(_LENGTHS, None)
        if lengths is None:
            assert not placeholders.has_part(base.weight), "a placeholder has no length"
            lengths = lengths_of_rows(module.whole(base.weight.detach()))
        module.adapter_layer_names = (*module.adapter_layer_names, architecture.MAGNITUDES)
        module.lora_magnitude_vector[adapter_name] = Magnitude(lengths.to(module.lora_A[adapter_name].weight.device))


class DoraLinear(LoraLinear):
    variant = _Variant

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        supported = not args and not kwargs and self._is_supported(x, self.get_base_layer())
        assert supported, "the DoRA that PEFT would compute is another"
        return super().forward(x)

    @property
    def lora_variants(self) -> dict[tuple[str, ...], type[Any] | None]:
        return {("use_dora",): _Variant}

    def product(self, x: Tensor, name: str) -> Tensor:
        base: Any = self.get_base_layer()
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        magnitude = self.lora_magnitude_vector[name]()
        result: Tensor = _ScaledProduct.apply(x, base.weight, a, b, magnitude, self.factors(name))
        return result if base.bias is None else result + base.bias


def _quotient(weight: Tensor, a: Tensor, b: Tensor, magnitude: Tensor, scaling: float) -> Tensor:
    """m / |W + s · B A|, and 1 for a row of zeros.

    The square of the divisor is |W|² + 2 s (W Aᵀ) · B + s² (B A Aᵀ) · B.
    """
    dtype = magnitude.dtype
    low, high = a.to(dtype), b.to(dtype)
    crossed = _wide_product(weight, a).mul_(2 * scaling).addmm_(high, low @ low.t(), alpha=scaling**2)
    squares = lengths_of_rows(weight).square_().add_((crossed * high).sum(1))
    divisor = squares.clamp_(min=0).sqrt_()
    return torch.where(divisor > 0, magnitude / divisor, 1.0)


def _wide_product(x: Tensor, weight: Tensor) -> Tensor:
    """x weightᵀ in fp32, or in the format of both if that is wider."""
    if x.dtype.itemsize >= torch.float32.itemsize:
        return x @ weight.t()
    if x.device.type == "cuda":
        return torch.mm(x, weight.t(), out_dtype=torch.float32)
    return x.float() @ weight.t().float()


class _ScaledProduct(torch.autograd.Function):
    """Of x [rows, in], what is stored of W [out, in], A [rank, in], B [out, rank] and m [out].

    Saved are the result, and what the product of LoRA saves.
    """

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - autograd sees tensors among the arguments only
        ctx: Any, x: Tensor, stored: Tensor, a: Tensor, b: Tensor, magnitude: Tensor, factors: Factors
    ) -> Tensor:
        weight = factors.whole(stored)
        dropped, mask = dropped_input(x, factors)
        low = (dropped @ a.t()).mul_(factors.scaling)
        quotient = _quotient(weight, a, b, magnitude, factors.scaling)
        result = _wide_product(x, weight).add_(low @ b.t()).mul_(quotient).to(x.dtype)
        ctx.save_for_backward(x, mask, stored, a, b, low, quotient, magnitude, result)
        ctx.factors = factors
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *saved, quotient, magnitude, result = ctx.saved_tensors
        of_magnitude = None
        if ctx.needs_input_grad[4]:
            total = (gradient.to(magnitude.dtype) * result).sum(0)
            of_magnitude = torch.where(magnitude != 0, total / magnitude, 0.0)
        scaled = (gradient * quotient).to(gradient.dtype)
        of_x, of_a, of_b = gradients(scaled, saved, ctx.factors, ctx.needs_input_grad)
        return of_x, None, of_a, of_b, of_magnitude, None
