"""Initial factors of a run whose adapters begin with a part of the base: the same on every rank and after a resume.

They are computed once, each by one rank, and are in every checkpoint. Another device or library rounds otherwise and
draws other random numbers (pissa_niter_N), so that the base that is trained beside would be another one. Called by
trainer.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from finetune_api.runtime.run_config import Lora, RunConfig

from . import adapters, checkpoint, decomposition, model
from .collectives import broadcast, new_channel, on_channel, on_every_rank, rank, world_size
from .decomposition import InitialFactors, Size
from .errors import ModelRefused, OutputRefused

KIND = "initial"
"""Of tensors in a checkpoint."""
_log = logging.getLogger(__name__)


def of_run(
    folder: Path, config: RunConfig, device: torch.device, active: Callable[[], None]
) -> dict[str, InitialFactors]:
    """By the names of layers, on the CPU; empty if adapters begin otherwise. Collective.

    `folder` is that of the model, `active` is called for each weight. Raises ModelRefused, and what loading a
    checkpoint raises.
    """
    lora, output = config.lora, Path(config.output)
    if lora is None or not decomposition.changes_base(lora):
        return {}
    sizes = on_every_rank(lambda: adapters.sizes(model.unloaded(folder), lora))[rank()]
    newest = checkpoint.latest(output)
    if newest is None:
        return _computed(folder, config, lora, sizes, device, active)
    try:
        return decomposition.from_state(checkpoint.read_part(output, newest, KIND, active), sizes)
    except ValueError as error:
        raise OutputRefused(
            f"cannot resume from the checkpoint of step {newest} in {output}: {error}; choose another output"
        ) from error


def _computed(
    folder: Path, config: RunConfig, lora: Lora, sizes: Mapping[str, Size], device: torch.device,
    active: Callable[[], None],
) -> dict[str, InitialFactors]:  # fmt: skip
    """Each rank decomposes its share of the weights, on its device."""
    order = sorted(sizes, key=lambda name: _operations(sizes[name]), reverse=True)
    own, found = set(order[rank() :: world_size()]), dict[str, InitialFactors]()
    if rank() == 0:
        _log.warning("Decomposes %d weights of the base for %s (%s).", len(order), lora.init, decomposition.KEY)

    def see(name: str, weight: Tensor) -> None:
        active()
        layer = name.removesuffix(".weight")
        if layer not in own:
            return
        try:
            found[layer] = decomposition.factors(weight.to(device), lora.init, sizes[layer], config.seed).to_cpu()
        except ValueError as error:
            raise ModelRefused(
                f"{decomposition.KEY}: {name} of job.model cannot be decomposed: {error}; leave it out of "
                "training.lora.target_modules, set the key to default or gaussian, or take another copy of the model"
            ) from error

    with on_channel(new_channel("decomposing")):  # one rank may be slower than the time-out of another channel
        on_every_rank(lambda: model.show(folder, config, see))
        assert found.keys() == own, f"not shown: {sorted(own - found.keys())[:5]}"
        return {name: _shared(found.get(name), sizes[name], number % world_size())
                for number, name in enumerate(order)}  # fmt: skip


def _operations(size: Size) -> int:
    return size.inputs * size.outputs * min(size.inputs, size.outputs)


def _shared(own: InitialFactors | None, size: Size, source: int) -> InitialFactors:
    if own is None:
        a, b = torch.empty(size.rank, size.inputs), torch.empty(size.outputs, size.rank)
        own = InitialFactors(a, b, size.scaling, size.transposed)
    broadcast(own.a, source)
    broadcast(own.b, source)
    return own
