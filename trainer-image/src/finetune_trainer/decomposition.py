"""Adapters that begin with a part of the base, beside what is left of it: PiSSA and OLoRA.

    PiSSA (Meng et al. 2024, 2404.02948)     W = U S Vᵀ    s B₀ A₀ = U_r S_r V_rᵀ, its r largest singular values
    OLoRA (Büyükakyüz 2024, 2406.01775)      W = Q R       A₀ = R[:r], B₀ = Q[:, :r]

The base that is trained beside is W - s B₀ A₀. What is published is a plain LoRA adapter of W, of rank 2r, because
W - s B₀ A₀ + s B A = W + s [B, -B₀] [A; A₀], as PEFT converts it (LoraModel.subtract_mutated_init).

Pure but for what is left at a model; initial_factors.py calls this for a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune_api.runtime.choices import LoraInit
from finetune_api.runtime.run_config import Lora

from . import lora_files
from .errors import ModelRefused

KEY = "training.lora.init_lora_weights"
_FACTORS = "_initial_factors"
_PARTS = _A, _B = ".lora_A", ".lora_B"
_OTHERWISE = "or set it to default or gaussian"


@dataclass(frozen=True)
class Size:
    """Of the adapter of a layer."""

    rank: int
    scaling: float
    inputs: int
    outputs: int
    transposed: bool
    """Whether its weight is stored as [inputs, outputs]."""


@dataclass(frozen=True)
class InitialFactors:
    """What the adapter of a layer begins with, in fp32."""

    a: Tensor
    """[rank, in]"""
    b: Tensor
    """[out, rank]"""
    scaling: float
    transposed: bool

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return tuple(self.a.shape), tuple(self.b.shape)

    def to_cpu(self) -> InitialFactors:
        return replace(self, a=self.a.cpu(), b=self.b.cpu())

    def residual(self, stored: Tensor, device: torch.device) -> Tensor:
        """What is left of a weight, in its format and layout, on `device`.

        In fp64 it is the same on all of them: products in fp32 may be made in TF32.
        """
        a, b = self.a.to(device).double(), self.b.to(device).double()
        product = (-self.scaling * b) @ a
        return (product.t() if self.transposed else product).add_(stored.to(device)).to(stored.dtype)


def changes_base(lora: Lora | None) -> bool:
    return lora is not None and lora.init.changes_base


def factors(stored: Tensor, init: LoraInit, size: Size, seed: int) -> InitialFactors:
    """Of a whole weight, on its device. Raises ValueError if that is not finite, or its decomposition not found.

    `seed` is that of the random numbers of `pissa_niter_N` (Halko et al. 2009).
    """
    weight = stored.t().float() if size.transposed else stored.float()
    if not weight.isfinite().all():
        raise ValueError("it has numbers that are not finite")
    try:
        a, b = _orthogonal(weight, size) if init is LoraInit.OLORA else _principal(weight, init, size, seed)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise ValueError(str(error)) from error
    return InitialFactors(a.contiguous(), b.contiguous(), size.scaling, size.transposed)


def _orthogonal(weight: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    q, r = torch.linalg.qr(weight)
    return r[: size.rank], q[:, : size.rank]


def _principal(weight: Tensor, init: LoraInit, size: Size, seed: int) -> tuple[Tensor, Tensor]:
    if init is LoraInit.PISSA:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    else:
        with torch.random.fork_rng([weight.device] if weight.device.type == "cuda" else []):
            torch.manual_seed(seed)
            u, s, v = torch.svd_lowrank(weight, size.rank, niter=int(init.rpartition("_")[2]))
        vh = v.t()
    if not s[0] > 0:  # A and B would be zero, and so would their gradients
        raise ValueError("it has only zeros")
    root = (s[: size.rank] / size.scaling).sqrt()
    return root[:, None] * vh[: size.rank], u[:, : size.rank] * root


def require_possible(model: PreTrainedModel, lora: Lora, sizes: Mapping[str, Size]) -> None:
    """Raises ModelRefused, on every rank alike, for layers whose weights cannot be divided so.

    `sizes`: of the layers that get adapters, by name.
    """
    if not changes_base(lora):
        return
    if lora.dora:
        raise ModelRefused(
            f"{KEY}: {lora.init} is not trained with use_dora, whose lengths are those of whole rows, and it leaves "
            f"a part of each row in the base; set use_dora to false, {_OTHERWISE}"
        )
    if lora.dropout:
        raise ModelRefused(
            f"{KEY}: {lora.init} moves the largest part of each weight into its adapter, whose dropout is "
            f"{lora.dropout:g} and would drop parts of the base; set training.lora.dropout to 0, {_OTHERWISE}"
        )
    tied = _tied(model)
    for name, size in sizes.items():
        most = min(size.inputs, size.outputs)
        if f"{name}.weight" in tied:
            raise ModelRefused(
                f"{KEY}: {lora.init} changes the weight of {name}, which is also that of another module; leave it "
                f"out of training.lora.target_modules, {_OTHERWISE}"
            )
        if size.rank > most:
            raise ModelRefused(
                f"{KEY}: {lora.init} takes {size.rank} directions out of {name}, which has {most} inputs or outputs; "
                f"set training.lora.r, or rank_pattern for it, to {most} or less, {_OTHERWISE}"
            )


def _tied(model: PreTrainedModel) -> set[str]:
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", {})
    return {name for pair in tied.items() for name in pair}


def residuals(
    named: Callable[[str, Tensor], Tensor], initial: Mapping[str, InitialFactors], device: torch.device
) -> Callable[[str, Tensor], Tensor]:
    """`named`, which is given a weight by its name, and is given what is left of those that have initial factors."""
    by_weight = {f"{name}.weight": found for name, found in initial.items()}

    def on_weight(name: str, weight: Tensor) -> Tensor:
        return named(name, by_weight[name].residual(weight, device) if name in by_weight else weight)

    return on_weight if initial else named


@torch.no_grad()
def begin(model: PeftModel, initial: Mapping[str, InitialFactors]) -> None:
    """Give the adapters of `model`, whose base has the residuals, their first values, and keep these with it."""
    base, (adapter,) = model.get_base_model(), model.peft_config
    for name, found in initial.items():
        layer: Any = base.get_submodule(name)
        layer.lora_A[adapter].weight.copy_(found.a)
        layer.lora_B[adapter].weight.copy_(found.b)
    setattr(model, _FACTORS, dict(initial))


def state(model: nn.Module) -> dict[str, Tensor]:
    """The initial factors that belong to `model` by name, for its checkpoints; empty if its base is whole."""
    found: Mapping[str, InitialFactors] = vars(model).get(_FACTORS, {})
    return {f"{n}{_A}": each.a for n, each in found.items()} | {f"{n}{_B}": each.b for n, each in found.items()}


def from_state(tensors: Mapping[str, Tensor], sizes: Mapping[str, Size]) -> dict[str, InitialFactors]:
    """The initial factors of a checkpoint. Raises ValueError if they are not those of adapters of these sizes."""
    if tensors.keys() != {f"{name}{part}" for name in sizes for part in _PARTS}:
        raise ValueError("it has the initial factors of other layers")
    found = {n: InitialFactors(tensors[n + _A], tensors[n + _B], s.scaling, s.transposed) for n, s in sizes.items()}
    for name, size in sizes.items():
        if found[name].shapes != ((size.rank, size.inputs), (size.outputs, size.rank)):
            raise ValueError(f"{name} has initial factors of another size")
    return found


def as_lora(model: PeftModel, config: LoraConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` of PEFT's file as those of an adapter of the whole base, and `config` likewise, in place.

    Without initial factors both stay as they are. The scaling of each layer stays, and is written as that of LoRA:
    with rsLoRA alpha would not be a whole number.
    """
    initial: Mapping[str, InitialFactors] = vars(model).get(_FACTORS, {})
    if not initial:
        return dict(tensors)
    joined = dict(tensors)
    for name, found in initial.items():
        a, b = (f"base_model.model.{name}{part}.weight" for part in _PARTS)
        joined[a], joined[b] = _balanced(torch.cat([joined[a], found.a]), torch.cat([joined[b], -found.b], 1))
    ranks = {name: 2 * len(each.a) for name, each in initial.items()}
    alphas = {name: _number(each.scaling * ranks[name]) for name, each in initial.items()}
    config.r, config.lora_alpha, config.use_rslora = _usual(ranks.values()), _usual(alphas.values()), False
    config.rank_pattern = lora_files.differing(ranks, config.r)
    config.alpha_pattern = lora_files.differing(alphas, config.lora_alpha)
    return joined


def _balanced(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the same product b a, as large as it: those of two products that nearly cancel would leave the
    roundings of these, where a program loads them in bf16."""
    rank = len(a)
    left, core = torch.linalg.qr(b.double())
    right, other = torch.linalg.qr(a.double().t())
    u, s, vh = torch.linalg.svd(core @ other.t(), full_matrices=False)
    root = s.sqrt()
    small_a, small_b = (root[:, None] * (vh @ right.t())).to(a.dtype), ((left @ u) * root).to(b.dtype)
    missing = rank - len(small_a)  # of a layer with fewer inputs or outputs than that
    return nn.functional.pad(small_a, (0, 0, 0, missing)), nn.functional.pad(small_b, (0, missing))


def _number(value: float) -> Any:
    """As an integer if it is one: PEFT's annotation says so, and some readers rely on it."""
    return round(value) if abs(value - round(value)) <= 1e-12 * value else value


def _usual(values: Iterable[Any]) -> Any:
    found = list(values)
    return max(found, key=found.count)
