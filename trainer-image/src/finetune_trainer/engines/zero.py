"""DeepSpeed's ZeRO: optimizer state (stage 1), gradients (2) and weights (3) are divided among the ranks.

DeepSpeed reduces gradients in its hooks during the backward pass, clips, and updates; the loop, the loss, the batches
and the files of a checkpoint are ours. It is imported only where a run asks for it.
"""

from __future__ import annotations

import logging
import math
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional

from finetune_api.runtime.choices import Method
from finetune_api.runtime.run_config import Optimizer, RunConfig
from finetune_api.runtime.zero import STAGES

from .. import architecture, placeholders
from ..chunked_loss import ChunkedLoss
from ..collate import TokenBatch
from ..errors import ConfigRefused, ModelRefused
from ..master import computes_apart
from ..mesh import RankMesh
from ..optim import trained
from ..unreached import Unreached
from . import zero_settings
from .base import StepOutcome
from .fsdp2 import Fsdp2
from .replicated import Replicated

MOMENTS = ("exp_avg", "exp_avg_sq")
_KEY = "hyperparameters.parallelism.use_deepspeed"
_PARTS = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
"""What the optimizer of stage 3, of stages 1 and 2, and of stage 1 in bf16 calls this rank's flat fp32 weights."""
_SHARED_MEMORY = "deepspeed_shm_comm"
"""An operation that DeepSpeed compiles when ranks on CPUs begin, for collective calls inside a node."""


class Zero:
    state_is_a_copy = True

    def __init__(self, model: nn.Module, config: RunConfig, mesh: RankMesh) -> None:
        deepspeed = _deepspeed(mesh)
        self._deepspeed = deepspeed
        self._mesh = mesh
        self._device = mesh.rank_info.device
        self._keeper = keeper(config, mesh)
        self._stage = STAGES[config.engine]
        self._max_norm = config.optimizer.max_grad_norm
        settings = zero_settings.of(config)
        apart = _computes_apart(model, config)
        if self._stage == 3:
            _require_all_trained(model, config)
            exact = _partition(model, mesh, self._keeper, deepspeed, settings, apart)
        else:
            placeholders.fill(model)
            model.to(self._device)
            exact = _round(model, self._keeper, apart)
        model.to(self._device)
        self.model = model
        self._parameters = trained(model)
        if config.lora is not None:
            for parameter in self._parameters.values():
                parameter.grad_dtype = torch.float32  # which the layers of adapters give
        self._reached = _Reached(self._parameters, self._device, speaks=mesh.rank_info.rank == 0)
        self._optimizer = _adamw(self._parameters, config.optimizer)
        self._engine = deepspeed.initialize(model=model, optimizer=self._optimizer, config=settings)[0]
        if config.lora is not None and config.offload is not None and config.offload.optimizer:
            _keep_fp32_gradients(self._engine.optimizer)
        self._loss = ChunkedLoss(model, self._engine)
        self._begin_with(exact)
        self._begin_moments()

    @staticmethod
    def part(weight: Tensor, mesh: RankMesh) -> Tensor:
        """All of it, as DDP: only stage 3 divides weights."""
        return Replicated.part(weight, mesh)

    def train(
        self,
        micro_batches: Iterable[TokenBatch],
        *,
        targets: int,
        learning_rate: float,
        max_norm: float,
        stop: Callable[[], bool],
    ) -> StepOutcome:
        assert max_norm == self._max_norm, "DeepSpeed has another norm in its settings"
        nll = torch.zeros((), dtype=torch.float64, device=self._device)
        for batch in micro_batches:
            # DeepSpeed takes the mean over the ranks
            nll += self._loss.backward(batch.to(self._device), targets / self._mesh.data_size)
            self._reached.after_micro_batch()
        totals = torch.stack([nll, torch.full_like(nll, stop()), torch.full_like(nll, bool(self._reached.missed))])
        totals = torch.cat([totals, self._reached.flags().to(totals.device)])
        self._mesh.sum_over_data(totals)
        total, stopping, missing, *reached = totals.tolist()
        if missing:
            raise ModelRefused(self._reached.refusal())
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        norm = self._update() if math.isfinite(total) else math.nan
        skipped = not math.isfinite(norm)
        self._reached.after_step(reached, skipped=skipped)
        return StepOutcome(total, norm, skipped, stopping > 0)

    def _update(self) -> float:
        """The norm of the gradients; not finite if DeepSpeed has left the weights as they were."""
        self._engine.step()
        return float(self._engine.get_global_grad_norm()) if self._engine.was_step_applied() else math.inf

    def evaluate(self, batch: TokenBatch) -> Tensor:
        self._engine.eval()
        total = self._loss.evaluate(batch.to(self._device))
        self._engine.train()
        return total

    def state(self) -> dict[str, Any]:
        get = self._deepspeed.utils
        found = {"parameters": self._rows(get.safe_get_full_fp32_param)}
        for moment in MOMENTS:
            found[moment] = self._rows(partial(get.safe_get_full_optimizer_state, optim_state_key=moment))
        return found

    def resumed(self, state: Mapping[str, Any], steps: int) -> None:
        put = self._deepspeed.utils
        for name, parameter in self._parameters.items():
            weight = self._whole(state["parameters"][name])
            self._put_weight(parameter, weight)
            self._show(parameter, weight)
            for moment in MOMENTS:
                own = {"optim_state_key": moment}
                whole = partial(put.safe_set_full_optimizer_state, **own)
                part = partial(put.safe_set_local_optimizer_state, **own)
                self._put(parameter, self._whole(state[moment][name]), whole, part)
        self._set_steps(steps)

    def _rows(self, whole: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
        """Tensors that are whole one after the other, and of which this rank keeps its rows."""
        return {name: _sharded(whole(parameter), self._keeper) for name, parameter in self._parameters.items()}

    def _whole(self, rows: DTensor) -> Tensor:
        return _gathered(rows, self._mesh)

    def _begin_with(self, exact: dict[str, DTensor]) -> None:
        """Give the optimizer the weights in fp32: it has made its own from those that the model computes with."""
        for name in list(exact):
            self._put_weight(self._parameters[name], self._whole(exact.pop(name)))

    def _put_weight(self, parameter: nn.Parameter, weight: Tensor) -> None:
        put = self._deepspeed.utils
        self._put(parameter, weight, put.safe_set_full_fp32_param, put.safe_set_local_fp32_param)

    def _put(
        self, parameter: nn.Parameter, value: Tensor, whole: Callable[..., None], part: Callable[..., None]
    ) -> None:
        """Stage 3 takes this rank's part, padded to the length of all parts: given the whole, it fails where ranks
        do not divide the elements."""
        if self._stage < 3:
            whole(parameter, value)
            return
        length = parameter.ds_tensor.numel()  # type: ignore[attr-defined]  # of DeepSpeed
        padded = functional.pad(value.flatten(), (0, length * self._mesh.data_size - value.numel()))
        part(parameter, padded[length * self._mesh.data_rank :][:length])

    def _show(self, parameter: nn.Parameter, weight: Tensor) -> None:
        """Let the model compute with `weight`."""
        gathered = self._deepspeed.zero.GatheredParameters
        with gathered([parameter], modifier_rank=0, enabled=self._stage == 3), torch.no_grad():
            parameter.copy_(weight)

    def _begin_moments(self) -> None:
        """Zeros, for a checkpoint to be loaded into them; torch makes them in the first step."""
        zero = self._engine.optimizer
        for part in next(getattr(zero, name) for name in _PARTS if hasattr(zero, name)):
            moments = {moment: torch.zeros_like(part, requires_grad=False) for moment in MOMENTS}
            self._optimizer.state[part] = {"step": torch.zeros((), device=part.device), **moments}
        if self._stage < 3:
            zero._lazy_init_hp_params_optimizer_state()  # noqa: SLF001 - else after the first step

    def _set_steps(self, steps: int) -> None:
        for state in self._optimizer.state.values():
            state["step"].fill_(steps)


class Zero3(Zero):
    """Stage 3: a weight is whole while its layer computes."""

    @staticmethod
    def part(weight: Tensor, mesh: RankMesh) -> Tensor:
        """This rank's rows, on its device."""
        return Fsdp2.part(weight, mesh)


class _Reached:
    """Which weights have got a gradient, and in the steps that `Unreached` asks for, which ones are not zero.

    DeepSpeed takes gradients away while the backward pass goes on. Its hooks come after these.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], device: torch.device, *, speaks: bool) -> None:
        self._unreached = Unreached(parameters, speaks=speaks)
        self._found: dict[str, Tensor] = {}
        self._names = {parameter: name for name, parameter in parameters.items()}
        self._nothing = torch.zeros((), dtype=torch.bool, device=device)
        self._with_gradient: set[str] = set()
        self.missed: set[str] = set()
        """Those without a gradient in a micro batch of this rank.

        DeepSpeed takes every gradient for granted: where one is missing, its sums are of other weights or steps.
        """
        for parameter in parameters.values():
            parameter.register_post_accumulate_grad_hook(self._after_backward)  # type: ignore[no-untyped-call]

    def _after_backward(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        name = self._names[cast("nn.Parameter", parameter)]
        self._with_gradient.add(name)
        if self._unreached.asks:
            self._found[name] = self._found.get(name, self._nothing) | parameter.grad.any()

    def after_micro_batch(self) -> None:
        self.missed |= set(self._names.values()) - self._with_gradient
        self._with_gradient.clear()

    def refusal(self) -> str:
        names = ", ".join(architecture.patterns(sorted(self.missed))) or "weights of another rank"
        return (
            f"{names}: not every micro batch uses these weights, and DeepSpeed would then sum others' gradients; in "
            "hyperparameters.parallelism leave deepspeed_config out and set use_deepspeed to false and fsdp to true"
        )

    def flags(self) -> Tensor:
        """As of `Unreached.reached`."""
        return self._unreached.reached(defaultdict(lambda: self._nothing, self._found))

    def after_step(self, reached: Sequence[float], *, skipped: bool) -> None:
        self._unreached.after_step(reached, skipped=skipped)
        self._found = {}


def _deepspeed(mesh: RankMesh) -> Any:
    """The module. It gets its device by a variable, and compiles nothing."""
    os.environ["DS_ACCELERATOR"] = mesh.rank_info.device.type
    os.environ.setdefault("LOCAL_RANK", str(mesh.rank_info.local_rank))
    try:
        import deepspeed  # noqa: PLC0415 - seconds, and 20 MB
        import deepspeed.ops  # noqa: PLC0415
    except ImportError as error:
        raise ConfigRefused(
            f"{_KEY} needs DeepSpeed, which is not installed here: {error}; install it, or set {_KEY} to false"
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__[_SHARED_MEMORY] = False
    return deepspeed


def keeper(config: RunConfig, mesh: RankMesh) -> RankMesh:
    """Where a rank has rows that nothing computes with, of weights while they load and of checkpoints: a run that
    offloads has no room for them on its device."""
    return mesh if config.offload is None else mesh.on_host


def _keep_fp32_gradients(zero: Any) -> None:
    """Of adapters. Offload does not work without the buffer of stage 2, which has the format of the weights."""
    zero._gradient_reduction_buffer_dtype = lambda: torch.float32  # noqa: SLF001 - no setting for it


def _adamw(parameters: Mapping[str, nn.Parameter], settings: Optimizer) -> torch.optim.AdamW:
    """Groups of matrices and of others. DeepSpeed replaces their weights with this rank's part, in one piece."""
    groups = []
    for matrices in (True, False):
        own = [p for p in parameters.values() if (len(_shape(p)) >= 2) == matrices]
        if own:
            groups.append({"params": own, "weight_decay": settings.weight_decay if matrices else 0.0})
    return torch.optim.AdamW(
        groups, lr=0.0, betas=(settings.beta1, settings.beta2), eps=settings.epsilon, fused=True
    )  # fmt: skip


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Of the whole, also where DeepSpeed has divided it."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _require_all_trained(model: nn.Module, config: RunConfig) -> None:
    """Frozen weights of full finetuning are published from the model, where stage 3 leaves none."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if config.method is Method.FFT and frozen:
        raise ModelRefused(
            f"{', '.join(architecture.patterns(frozen))}: full finetuning of this architecture leaves these weights "
            "as they are, and ZeRO-3 cannot publish them; set deepspeed_stage 2, or fsdp"
        )


def _computes_apart(model: nn.Module, config: RunConfig) -> frozenset[str]:
    """As `master.computes_apart`; DeepSpeed has one format for all weights of a model."""
    apart = frozenset(computes_apart(model, config.precision))
    kept = [n for n, p in model.named_parameters() if apart and p.dtype == torch.float32 and n not in apart]
    if kept:
        raise ModelRefused(
            f"{', '.join(architecture.patterns(kept))}: the architecture keeps these weights in fp32, and ZeRO "
            "computes with all weights in one format; set fsdp, or compute in fp32 (hyperparameters.parallelism.bf16)"
        )
    return apart


def _round(model: nn.Module, keeper: RankMesh, names: Collection[str]) -> dict[str, DTensor]:
    """Let the model compute in bf16 with these weights. Returns this rank's rows of them as they were on rank 0."""
    exact = {}
    for name, parameter in model.named_parameters():
        if name in names:
            exact[name] = _of_rank_0(parameter.data, keeper)
            parameter.data = parameter.data.bfloat16()
    return exact


def _partition(
    model: nn.Module, mesh: RankMesh, keeper: RankMesh, deepspeed: Any, settings: Mapping[str, Any],
    apart: Collection[str],
) -> dict[str, DTensor]:  # fmt: skip
    """Give each weight to DeepSpeed, which leaves a part of it on each rank: one is whole at a time.

    Rows of placeholders come from the ranks that have kept them, other weights from rank 0. Returns this rank's rows
    of those that the model computes with in bf16, as they were.
    """
    exact: dict[str, DTensor] = {}
    for name, parameter in model.named_parameters():
        part = placeholders.take(parameter)
        rows = None if part is None else _rows(part, parameter, keeper)
        if name in apart:
            rows = _of_rank_0(parameter.data.to(mesh.rank_info.device), keeper) if rows is None else rows
            exact[name], rows = rows, cast("DTensor", rows.bfloat16())
        if rows is not None:
            parameter.data = _gathered(rows, mesh)
        deepspeed.zero.Init(
            module=nn.ParameterList([parameter]), mem_efficient_linear=False, config_dict_or_path=settings,
            dtype=parameter.dtype,
        )  # fmt: skip
    return exact


def _of_rank_0(whole: Tensor, keeper: RankMesh) -> DTensor:
    """This rank's rows of rank 0's tensor, which is written over `whole`."""
    dist.broadcast(whole, src=0)
    return _sharded(whole, keeper)


def _sharded(whole: Tensor, keeper: RankMesh) -> DTensor:
    """This rank's rows of a tensor that every rank has."""
    return _rows(Fsdp2.part(whole, keeper), whole, keeper)


def _gathered(rows: DTensor, mesh: RankMesh) -> Tensor:
    """The whole tensor on this rank's device, also of rows that are in the memory of the host."""
    return _rows(rows.to_local().to(mesh.rank_info.device), rows, mesh).full_tensor()


def _rows(part: Tensor, like: Tensor, mesh: RankMesh) -> DTensor:
    stride = torch.empty(like.shape, device="meta").stride()
    return DTensor.from_local(part, mesh.devices, [Shard(0)], run_check=False, shape=like.shape, stride=stride)
