"""What ranks hold after the base model was loaded and an engine was built around it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import adapters, engines, environment, loss, mesh, model
from finetune_trainer.collate import collate
from finetune_trainer.environment import RankInfo
from trainer.parity_cases import rows


def built(folders: list[Path], config: RunConfig) -> dict[str, Tensor]:
    """Full parameters and buffers of this rank, which loads the base from a folder of its own."""
    rank, world = dist.get_rank(), dist.get_world_size()
    environment.seed(config.seed, rank)
    found: nn.Module = model.load(folders[rank], config)
    if config.lora is not None:
        found = adapters.attach(found, config.lora)  # type: ignore[arg-type]
    engine = engines.build(found, config, mesh.build(config, RankInfo(rank, world, rank, torch.device("cpu"))))
    full = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in engine.model.named_parameters()}
    return {name: tensor.detach().clone() for name, tensor in (full | dict(engine.model.named_buffers())).items()}


def forwards(folder: Path, config: RunConfig) -> tuple[dict[str, Tensor], list[int]]:
    """The loss and the gradients of a micro batch, and how often the MLP of each layer has begun to compute.

    Not how often it has ended: torch stops a second time at the last number that the backward pass needs.
    """
    torch.set_num_threads(1)
    loaded = model.load(folder, config)
    layers = loaded.model.layers
    counts = [0] * len(layers)

    def count(layer: int, *_: object) -> None:
        counts[layer] += 1

    for i, layer in enumerate(layers):
        layer.mlp.register_forward_pre_hook(partial(count, i))
    total = loss.nll(loaded, collate(rows(2), range(2)))
    total.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in loaded.named_parameters() if p.grad is not None}
    return {"loss": total.detach(), **gradients}, counts


def bytes_to_load(small: list[Path], large: list[Path], config: RunConfig) -> int:
    """Memory that loading the large model takes on this rank; loading the small one first pays for the imports."""
    model.load(small[dist.get_rank()], config)
    before = _resident()
    loaded = model.load(large[dist.get_rank()], config)
    after = _resident()
    del loaded
    return after - before


def refused(folders: list[Path], config: RunConfig) -> None:
    model.load(folders[dist.get_rank()], config)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
