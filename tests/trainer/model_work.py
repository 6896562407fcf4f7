"""What ranks hold after the base model was loaded and an engine was built around it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM

from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import adapters, engines, environment, mesh, model
from finetune_trainer.collate import collate
from finetune_trainer.engines.fsdp2 import shard
from finetune_trainer.environment import RankInfo
from finetune_trainer.placeholders import Keep
from finetune_trainer.quantised_layer import QuantisedLinear
from trainer import models, quantised
from trainer.gradient_memory_work import anonymous, give_back_at_once
from trainer.parity_cases import rows
from trainer.result_work import sampling


def built(folder: Path, config: RunConfig) -> dict[str, Tensor]:
    """Full parameters and buffers of this rank."""
    rank, world = dist.get_rank(), dist.get_world_size()
    environment.seed(config.seed, rank)
    layout = mesh.build(config, RankInfo(rank, world, rank, torch.device("cpu")))
    found: nn.Module = model.load(folder, config, engines.kept(config, layout), layout.rank_info.device)
    if config.lora is not None:
        found = adapters.attach(found, config.lora)  # type: ignore[arg-type]
    engine = engines.build(found, config, layout)
    full = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in engine.model.named_parameters()}
    return {name: tensor.detach().clone() for name, tensor in (full | dict(engine.model.named_buffers())).items()}


def shifted(folder: Path, config: RunConfig) -> dict[str, Tensor]:
    """Full parameters, where 1 was added to all that the engine gives as its state after a forward pass."""
    rank, world = dist.get_rank(), dist.get_world_size()
    layout = mesh.build(config, RankInfo(rank, world, rank, torch.device("cpu")))
    engine = engines.build(
        model.load(folder, config, engines.kept(config, layout), layout.rank_info.device), config, layout
    )
    engine.evaluate(collate(rows(1), range(1)))
    state = engine.state()
    for weight in state["parameters"].values():
        weight.add_(1.0)
    engine.resumed(state, 1)
    full = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in engine.model.named_parameters()}
    return {name: tensor.detach().clone() for name, tensor in full.items()}


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank."""

    grown: int
    """The most that loading and sharding took, above what a model without weights takes."""
    shard: int
    """This rank's part of the weights, in all formats that it holds them in."""
    largest: int
    """The largest tensor of the model, in the format in which it is loaded."""
    whole: int
    """All tensors."""


def save_deep_model(folder: Path) -> None:
    """Half a gigabyte in fp32."""
    config = LlamaConfig(
        vocab_size=8192, hidden_size=640, intermediate_size=1728, num_hidden_layers=24,
        num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def save_deep_fp8(folder: Path) -> None:
    """Six layers whose MLP is large, 0.4 GB in fp32, in blocks that are cut off at the ends."""
    config = LlamaConfig(
        vocab_size=256, hidden_size=672, intermediate_size=6752, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=4,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as plain:
        quantised.save_fp8(LlamaForCausalLM(config), folder, Path(plain), (128, 128))


def save_deep_mxfp4(folder: Path) -> None:
    """Eight layers of experts, 0.4 GB in fp32."""
    config = GptOssConfig(
        vocab_size=256, hidden_size=512, intermediate_size=512, num_hidden_layers=8, num_local_experts=16,
        num_attention_heads=4, num_key_value_heads=4, head_dim=32,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as plain:
        quantised.save_mxfp4(GptOssForCausalLM(config), folder, Path(plain))


def memory_of_loading(small: Path, large: Path, config: RunConfig) -> Memory:
    give_back_at_once()
    torch.set_num_threads(1)
    rank, world = dist.get_rank(), dist.get_world_size()
    layout = mesh.build(config, RankInfo(rank, world, rank, torch.device("cpu")))
    keep = engines.kept(config, layout)
    shard(_prepared(small, config, keep), config, layout)  # pays for what is made once in a process
    sizes: list[int] = []
    samples = [anonymous()]

    def counted(weight: Tensor) -> Tensor:
        sizes.append(weight.nbytes)
        return keep(weight)

    with sampling(samples):
        found = _prepared(large, config, counted)
        separate = shard(found, config, layout)
        local = [p.to_local().detach() for p in found.parameters() if isinstance(p, DTensor)]
        for part in local:
            part.zero_()  # memory in the compute format is used by the first rounding only
    scales = [buffer for m in found.modules() if isinstance(m, QuantisedLinear) for buffer in m.buffers()]
    dtype = model.storage_dtype(config)
    largest = max(p.numel() for p in model.unloaded(large).parameters()) * dtype.itemsize
    held = sum(part.nbytes for part in (*local, *separate.values(), *scales))
    return Memory(max(samples) - samples[0], held, largest, sum(sizes))


def _prepared(folder: Path, config: RunConfig, keep: Keep) -> nn.Module:
    base = model.load(folder, config, keep, torch.device("cpu"))
    return base if config.lora is None else adapters.attach(base, config.lora)


def kept_and_sharded(rows: int, config: RunConfig) -> tuple[Tensor, Tensor]:
    """What this rank keeps of a matrix, and its shard as torch makes it."""
    rank, world = dist.get_rank(), dist.get_world_size()
    layout = mesh.build(config, RankInfo(rank, world, rank, torch.device("cpu")))
    matrix = nn.Linear(2, rows, bias=False)
    dist.broadcast(matrix.weight.data, src=0)
    kept = engines.kept(config, layout)(matrix.weight.detach())
    fully_shard(matrix, mesh=layout.devices)
    assert isinstance(matrix.weight, DTensor)
    return kept, matrix.weight.to_local().detach()


def refused(folders: list[Path], config: RunConfig) -> None:
    models.loaded(folders[dist.get_rank()], config)
