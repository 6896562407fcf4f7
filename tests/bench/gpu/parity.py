"""Whether a run on the GPU is the run on the CPU: losses and first gradients, against fp32 on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.figures import Figure
from finetune_api.runtime.choices import Engine, Method
from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import loop
from finetune_trainer.quantised_layer import QuantisedLinear
from trainer import parity_cases
from trainer.parity_cases import Recording, Trace

from . import shapes
from .shapes import SHARDS, SMOL, Work

STEPS = 12
CPU = torch.device("cpu")
LEARNING_RATES = {Method.FFT: 3e-4, Method.LORA: 1e-3, Method.QLORA: 1e-3}


def figures(device: torch.device) -> Iterator[Figure]:
    for method, learning_rate in LEARNING_RATES.items():
        work = Work(SMOL, method, rows=8)
        changes = {"optimizer__learning_rate": learning_rate, "schedule__max_steps": STEPS}
        exact = work.config(CPU, precision="fp32", **changes)
        built = shapes.random_model(SMOL, exact, CPU)
        cpu = _trace(exact, built, CPU)
        learnt = cpu.losses[0] - cpu.losses[-1]
        yield Figure(f"{method}: what the loss of fp32 on the CPU falls by", learnt, "nats", least=0.05)
        gpu = _trace(work.config(device, precision="fp32", **changes), built, device)
        yield from _compared(f"{method}, fp32", cpu, gpu, loss=1e-3, gradient=1e-3)
        in_bf16 = _frozen_in_bf16(built)
        bf16 = _trace(work.config(device, **changes), in_bf16, device)
        yield from _compared(f"{method}, bf16", cpu, bf16, loss=0.02, gradient=0.06)
        if SHARDS:
            with shapes.nccl(device):
                sharded = _trace(work.config(device, engine=Engine.FSDP2, **changes), in_bf16, device)
            yield from _compared(f"{method}, bf16, fsdp2 against single", bf16, sharded, loss=2e-3, gradient=2e-3)


def _trace(config: RunConfig, built: nn.Module, device: torch.device) -> Trace:
    """A run of a copy of `built`."""
    state = shapes.train_state(config, copy.deepcopy(built), parity_cases.rows(97, longest=512), device)
    recording = Recording(state.engine)
    found = Trace(gradients=recording.first)
    loop.fit(state, 0, [lambda result: found.losses.append(result.loss)])
    found.gradients = {name: gradient.cpu() for name, gradient in recording.first.items()}
    return found


def _frozen_in_bf16(built: nn.Module) -> nn.Module:
    """As storage_dtype says: a frozen base is stored in the format that it computes in."""
    found = copy.deepcopy(built)
    for parameter in found.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.bfloat16()
    for module in found.modules():
        if isinstance(module, QuantisedLinear):
            module.dtype = torch.bfloat16
    return found


def _compared(name: str, reference: Trace, found: Trace, *, loss: float, gradient: float) -> Iterator[Figure]:
    """Distances of losses in nats, of gradients relative to their norm."""
    far = max(abs(a - b) for a, b in zip(reference.losses, found.losses, strict=True))
    yield Figure(f"{name}: furthest loss of {STEPS}", far, "nats", most=loss)
    far, worst = max((_distance(whole, found.gradients[key]), key) for key, whole in reference.gradients.items())
    yield Figure(f"{name}: first gradient of {worst[-30:]}", far, "", most=gradient)
    whole, other = (
        torch.cat([t.gradients[key].flatten() for key in reference.gradients]) for t in (reference, found)
    )
    yield Figure(f"{name}: first gradients together", _distance(whole, other), "", most=gradient / 2)
    yield Figure(f"{name}: their projection", float(whole @ other / (whole @ whole)), "", least=0.985, most=1.015)


def _distance(whole: Tensor, other: Tensor) -> float:
    return float((whole - other).norm() / whole.norm()) if float(whole.norm()) else float(other.norm())
