"""What ranks compute when some layers recompute, how often each layer computes, and what autograd saves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor

from finetune_api.runtime.choices import Recompute
from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import activations, adapters, collectives, engines, environment, mesh, model
from finetune_trainer.collate import collate
from finetune_trainer.environment import RankInfo
from trainer.parity_cases import rows

STEPS = 3


def runs(folder: Path, config: RunConfig, hows: list[Recompute | int]) -> list[tuple[dict[str, Tensor], list[int]]]:
    """`steps` for each choice, one after another."""
    torch.set_num_threads(1)
    return [steps(folder, config, how) for how in hows]


def steps(folder: Path, config: RunConfig, how: Recompute | int) -> tuple[dict[str, Tensor], list[int]]:
    """Losses, norms and weights of some steps of two micro batches; how often the MLP of each layer began to compute.

    Not how often it has ended: torch stops a second time at the last number that the backward pass needs.
    """
    rank, world = collectives.rank(), collectives.world_size()
    layout = mesh.build(config, RankInfo(rank, world, rank, torch.device("cpu")))
    environment.seed(config.seed)
    built: nn.Module = model.load(folder, config, engines.kept(config, layout), layout.rank_info.device)
    if config.lora is not None:
        built = adapters.attach(built, config.lora)  # type: ignore[arg-type]
    activations.recompute(built, how)
    environment.seed(config.seed, rank)
    layers = activations.layers(built)
    engine = engines.build(built, config, layout)
    calls = [0] * len(layers)

    def count(layer: int, *_: object) -> None:
        calls[layer] += 1

    for i, layer in enumerate(layers):
        layer.mlp.register_forward_pre_hook(partial(count, i))  # type: ignore[union-attr]
    engine.evaluate(collate(rows(2), range(2)))  # tries the chunks of the loss
    calls[:] = [0] * len(layers)
    found = []
    for step in range(STEPS):
        batches = [collate(rows(8), [(step + rank + 2 * i) % 8, (step + 5 * i) % 8]) for i in range(2)]
        outcome = engine.train(batches, targets=100, learning_rate=1e-3, max_norm=1.0, stop=lambda: False)
        found.append((outcome.nll, outcome.norm))
    weights = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in engine.model.named_parameters()}
    return {"outcomes": torch.tensor(found), **{n: p.detach().clone() for n, p in weights.items()}}, calls


def saved_bytes(built: nn.Module, forward: Callable[[], object]) -> int:
    """Of distinct storages that autograd saves in a forward pass, without parameters and buffers."""
    seen: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen.setdefault(storage.data_ptr(), storage)
        return tensor

    own = {tensor.untyped_storage().data_ptr() for tensor in (*built.parameters(), *built.buffers())}
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for address, storage in seen.items() if address not in own)
