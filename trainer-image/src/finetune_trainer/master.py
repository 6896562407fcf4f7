"""Trained weights: in fp32 for the optimizer, and in the format that the model computes in.

Bytes of a trained parameter, by the precision of the run (a sharded engine divides each by its ranks). The last
column is bf16 with `weights: bf16`:

                                         fp32    bf16, fp16  only bf16
    weight that the optimizer updates    4       4           (the next)
    weight that the model computes with  (same)  2           2
    gradient, summed over micro batches  4       4           4
    moments of AdamW                     8       8           8
                                         16      18          14

AdamW in eight bits (adamw_8bit.py) takes 2.03 in place of the 8.

In bf16 the forward and backward pass, the residual stream included, compute in bf16, as the layers of the model
define it (norms and softmax use fp32 inside); gradients of a micro batch are bf16, those of adapters fp32, and their
sums over micro batches and ranks fp32. The loss is fp32. Frozen weights are stored in the compute format. fp16 is the
same with another format and a loss scale (loss_scale.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from finetune_api.runtime.choices import Precision, WeightFormat

from . import architecture
from .optim import trained
from .rounding import WeightRounding

COMPUTE = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


def computes_apart(model: nn.Module, precision: Precision) -> list[str]:
    """Trained parameters with whose roundings the model computes, instead of with their fp32 weights.

    Not those that its architecture keeps in fp32.
    """
    candidates = [name for name, p in trained(model).items() if p.dtype == torch.float32 != COMPUTE[precision]]
    kept = architecture.kept_in_fp32(model, candidates, COMPUTE[precision])
    return [name for name in candidates if name not in kept]


def to_compute_format(parameter: nn.Parameter, precision: Precision) -> None:
    """Give `parameter` the compute format, uninitialised; its gradients stay fp32."""
    parameter.data = torch.empty_like(parameter, dtype=COMPUTE[precision])
    parameter.grad_dtype = torch.float32


class MasterWeights:
    """The trained parameters of a model that is on its device, sharded or not."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        separate: Mapping[str, Tensor],
        rounding: WeightRounding,
        kept: WeightFormat = WeightFormat.FP32,
    ) -> None:
        """`separate`: this rank's part in fp32 of those parameters that are in the compute format.

        `kept` bf16: the rounded weights are the only ones from now on.
        """
        self._parameters = parameters
        self._separate = separate
        self._rounding = rounding
        self.publish(0)
        self._alone = frozenset(separate) if kept is WeightFormat.BF16 else frozenset()
        if self._alone:
            self._separate = {}
        self.local = {name: self._separate.get(name, local(p.detach())) for name, p in parameters.items()}
        """This rank's part of each weight, which the optimizer updates."""

    def gradients(self) -> dict[str, Tensor]:
        """This rank's part of each gradient."""
        return {name: local(_gradient(name, parameter)) for name, parameter in self._parameters.items()}

    def clear_gradients(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def updates(self, step: int) -> Iterator[Mapping[str, Tensor]]:
        """The weights in fp32, in parts, to be updated in place to those after `step` steps.

        Weights that are kept in bf16 come one by one, and are rounded before the next comes.
        """
        for name in self._alone:
            exact = self.local[name].float()
            yield {name: exact}
            self._round(name, exact, step)
        yield {name: weight for name, weight in self.local.items() if name not in self._alone}
        self.publish(step)

    def publish(self, step: int) -> None:
        """Round the weights, as they are after `step` steps, to those that the model computes with."""
        for name, weight in self._separate.items():
            self._round(name, weight, step)

    def _round(self, name: str, weight: Tensor, step: int) -> None:
        parameter = self._parameters[name].detach()
        self._rounding.round(weight, local(parameter), name=name, start=_start(parameter), step=step)

    def whole(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """DTensors over `parts`, where parameters are sharded: each has as many rows as its parameter."""
        return {name: _like(self._parameters[name], part) for name, part in parts.items()}


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, which shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(parameter: Tensor, part: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return part
    shape = torch.Size((parameter.shape[0], *part.shape[1:]))
    return cast("Tensor", DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, run_check=False,
        shape=shape, stride=torch.empty(shape, device="meta").stride(),
    ))  # fmt: skip


def _start(parameter: Tensor) -> int:
    """Elements of the whole parameter before this rank's part, which is a run of rows."""
    if not isinstance(parameter, DTensor):
        return 0
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return offset[0] * prod(parameter.shape[1:]) if offset else 0


def _gradient(name: str, parameter: nn.Parameter) -> Tensor:
    """Zeros where the loss has not used the parameter, such as an expert that no token was sent to."""
    if parameter.grad is None:
        return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
    assert parameter.grad.dtype.itemsize >= 4, f"this torch sums the gradients of {name} in {parameter.grad.dtype}"
    return parameter.grad
