"""DeepSpeed's ZeRO: optimizer state (stage 1), gradients (2) and weights (3) are divided among the ranks.

DeepSpeed reduces gradients in its hooks during the backward pass, clips, and updates; the loop, the loss, the batches
and the files of a checkpoint are ours. It is imported only where a run asks for it.
"""

from __future__ import annotations

import logging
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from finetune_api.runtime.choices import Method
from finetune_api.runtime.run_config import Optimizer, RunConfig

from .. import architecture, placeholders
from ..chunked_loss import ChunkedLoss
from ..collate import TokenBatch
from ..errors import ConfigRefused, ModelRefused
from ..mesh import RankMesh
from ..optim import trained
from ..unreached import Unreached
from . import zero_settings
from .base import StepOutcome
from .fsdp2 import Fsdp2
from .replicated import Replicated

MOMENTS = ("exp_avg", "exp_avg_sq")
_KEY = "hyperparameters.parallelism.use_deepspeed"
_SHARED_MEMORY = "deepspeed_shm_comm"
"""An operation that DeepSpeed compiles when ranks on CPUs begin, for collective calls inside a node."""


class Zero:
    def __init__(self, model: nn.Module, config: RunConfig, mesh: RankMesh) -> None:
        for problem in zero_settings.refused(config):
            raise ConfigRefused(problem)
        deepspeed = _deepspeed(mesh)
        self._deepspeed = deepspeed
        self._mesh = mesh
        self._device = mesh.rank_info.device
        self._stage = zero_settings.STAGES[config.engine]
        self._max_norm = config.optimizer.max_grad_norm
        settings = zero_settings.of(config)
        if self._stage == 3:
            _require_all_trained(model, config)
            _partition(model, mesh, deepspeed, settings)
        else:
            placeholders.fill(model)
        model.to(self._device)
        self.model = model
        self._parameters = trained(model)
        self._reached = _Reached(self._parameters, speaks=mesh.rank_info.rank == 0)
        self._optimizer = _adamw(self._parameters, config.optimizer)
        self._engine = deepspeed.initialize(model=model, optimizer=self._optimizer, config=settings)[0]
        self._loss = ChunkedLoss(model, self._engine)
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
        totals = torch.stack([nll, torch.full_like(nll, stop())])
        totals = torch.cat([totals, self._reached.flags().to(totals.device)])
        self._mesh.sum_over_data(totals)
        total, stopping, *reached = totals.tolist()
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
            weight = state["parameters"][name].full_tensor()
            self._put(parameter, weight, put.safe_set_full_fp32_param, put.safe_set_local_fp32_param)
            self._show(parameter, weight)
            for moment in MOMENTS:
                own = {"optim_state_key": moment}
                whole = partial(put.safe_set_full_optimizer_state, **own)
                part = partial(put.safe_set_local_optimizer_state, **own)
                self._put(parameter, state[moment][name].full_tensor(), whole, part)
        self._set_steps(steps)

    def _rows(self, whole: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
        """Tensors that are whole one after the other, and of which this rank keeps its rows."""
        return {name: _sharded(whole(parameter), self._mesh) for name, parameter in self._parameters.items()}

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
        parts = zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        for part in parts:
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
    """Which gradients are not zero, on this rank, in the steps that `Unreached` asks for.

    DeepSpeed takes gradients away while the backward pass goes on. Its hooks come after these.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, speaks: bool) -> None:
        self._unreached = Unreached(parameters, speaks=speaks)
        self._found: dict[str, Tensor] = {}
        self._names = {parameter: name for name, parameter in parameters.items()}
        self._handles: list[RemovableHandle] = [
            p.register_post_accumulate_grad_hook(self._after_backward)  # type: ignore[no-untyped-call]
            for p in parameters.values()
        ]

    def _after_backward(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        name = self._names[cast("nn.Parameter", parameter)]
        found = parameter.grad.any()
        self._found[name] = self._found[name] | found if name in self._found else found

    def flags(self) -> Tensor:
        """As of `Unreached.reached`."""
        nothing = torch.zeros(1, dtype=torch.bool)
        return self._unreached.reached(defaultdict(lambda: nothing, self._found))

    def after_step(self, reached: Sequence[float], *, skipped: bool) -> None:
        self._unreached.after_step(reached, skipped=skipped)
        self._found = {}
        if not self._unreached.asks:
            for handle in self._handles:
                handle.remove()
            self._handles = []


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


def _partition(model: nn.Module, mesh: RankMesh, deepspeed: Any, settings: Mapping[str, Any]) -> None:
    """Give each weight to DeepSpeed, which leaves a part of it on each rank: one is whole at a time.

    Rows of placeholders come from the ranks that have kept them, other weights from rank 0.
    """
    for parameter in model.parameters():
        part = placeholders.take(parameter)
        if part is not None:
            parameter.data = _whole(part, parameter, mesh)
        deepspeed.zero.Init(
            module=nn.ParameterList([parameter]), mem_efficient_linear=False, config_dict_or_path=settings,
            dtype=parameter.dtype,
        )  # fmt: skip


def _whole(part: Tensor, like: Tensor, mesh: RankMesh) -> Tensor:
    stride = torch.empty(like.shape, device="meta").stride()
    rows = DTensor.from_local(part, mesh.devices, [Shard(0)], run_check=False, shape=like.shape, stride=stride)
    return rows.full_tensor()


def _sharded(whole: Tensor, mesh: RankMesh) -> Tensor:
    """This rank's rows of a tensor that every rank has."""
    rows = Fsdp2.part(whole, mesh)
    return DTensor.from_local(
        rows, mesh.devices, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
    )
