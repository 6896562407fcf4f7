"""AdamW over the trained parameters, and clipping by the global gradient norm. Used by the engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from finetune_api.runtime.run_config import Optimizer

_TINY = 1e-6
"""Avoids a division by zero; the same value as in torch's own clipping."""


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters by name. Tied parameters appear once, under their first name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adamw(parameters: Iterable[nn.Parameter], settings: Optimizer) -> AdamW:
    """AdamW with its moments allocated from the start, so that a checkpoint can be loaded into them.

    Weight decay applies to matrices (embeddings included), not to norms and biases.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in parameters:
        groups[parameter.ndim >= 2].append(parameter)
    optimizer = AdamW(
        [
            {"params": groups[True], "weight_decay": settings.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )
    for parameter in (*groups[True], *groups[False]):
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
    return optimizer


def build(parameters: Iterable[nn.Parameter], settings: Optimizer) -> AdamW:
    """The optimizer that the configuration names."""
    return _OPTIMIZERS[settings.name](parameters, settings)


_OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], Optimizer], AdamW]] = {"adamw": adamw}


def clip(gradients: Sequence[Tensor], max_norm: float) -> float:
    """Clip gradients in place to the global L2 norm `max_norm` (0: no clipping); return the norm before.

    Either all gradients are full tensors, or all are sharded over all ranks.
    """
    local = [_local(gradient) for gradient in gradients]
    square = torch.nn.utils.get_total_norm(local).double().square()
    if isinstance(gradients[0], DTensor):
        dist.all_reduce(square)
    norm = float(square.sqrt())
    if 0 < max_norm < norm:
        for gradient in local:
            gradient.mul_(max_norm / (norm + _TINY))
    return norm


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
