"""Models of real shapes with random weights, and runs that train them with the engines of the product."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from finetune_api.resource import defaults
from finetune_api.runtime.choices import Method, Recompute
from finetune_api.runtime.run_config import BaseQuantisation, Lora, RunConfig
from finetune_trainer import activations, adapters, engines, environment, mesh, model, quantised_base
from finetune_trainer.environment import RankInfo
from finetune_trainer.loop import TrainState
from finetune_trainer.rows import Rows
from finetune_trainer.sampler import BatchSharding
from finetune_trainer.trainer import sampler
from trainer import models

SEED = 7
SHARDS = hasattr(FSDPModule, "set_reduce_scatter_unused_params")
"""Whether this torch has what our FSDP2 needs of it: one that is older than the locked one runs the rest."""


@dataclass(frozen=True)
class Shape:
    """A model of the Llama architecture."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = True

    @property
    def parameters(self) -> int:
        """Of its matrices, without the norms; tied embeddings count once."""
        attention = 2 * self.hidden**2 * (1 + self.kv_heads / self.heads)
        layer = int(attention) + 3 * self.hidden * self.intermediate
        return self.layers * layer + self.vocabulary * self.hidden * (1 if self.tied else 2)


SMOL = Shape("SmolLM2-135M", 576, 1536, 30, 9, 3, 49_152)
LLAMA_1B = Shape("Llama-3.2-1B", 2048, 8192, 16, 32, 8, 128_256)
LLAMA_3B = Shape("Llama-3.2-3B", 3072, 8192, 28, 24, 8, 128_256)
LLAMA_8B = Shape("Llama-3.1-8B", 4096, 14_336, 32, 32, 8, 128_256, tied=False)


@dataclass(frozen=True)
class Work:
    """What is trained, and how many rows of which length in a step."""

    shape: Shape
    method: Method
    rows: int
    length: int = 2048
    """Tokens of a row that the model sees."""
    checkpointing: bool = False
    dora: bool = False

    def __str__(self) -> str:
        method = f"{self.method} dora" if self.dora else self.method
        checkpointing = ", recomputed" if self.checkpointing else ""
        return f"{self.shape.name} {method}, {self.rows} x {self.length}{checkpointing}"

    def config(self, device: torch.device, **changes: Any) -> RunConfig:
        lora = models.lora(
            rank=defaults.LORA_RANK,
            alpha=float(defaults.LORA_RANK * defaults.LORA_ALPHA_PER_RANK),
            dropout=defaults.LORA_DROPOUT,
            target_modules=(defaults.LORA_TARGETS,),
            dora=self.dora,
        )
        given = {
            "method": self.method,
            "lora": None if self.method is Method.FFT else lora,
            "quantisation": {"format": "nf4", "double": True} if self.method is Method.QLORA else None,
            "device": device.type,
            "precision": "bf16",
            "batch": {"per_device": self.rows, "accumulation": 1},
            "activation_checkpointing": self.checkpointing,
            "seed": SEED,
        }
        return models.run_config(Path("model"), Path("train.jsonl"), Path("output"), **(given | changes))


def architecture(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=shape.tied,
    )


def random_model(
    shape: Shape, config: RunConfig, device: torch.device, *, prepared: bool = True, theirs: bool = False
) -> nn.Module:
    """As model.load and adapters.attach give it, with random weights, which differ from device to device.

    Not `prepared`: as transformers makes it. `theirs`: with the layers of PEFT and bitsandbytes.
    """
    environment.seed(SEED)
    with device:
        base: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            architecture(shape), dtype=model.storage_dtype(config)
        )
        if prepared:
            model.prepare(base, config)
        if config.quantisation is not None:
            (_quantise if theirs else quantised_base.quantise)(base, config.quantisation)
        built = base if config.lora is None else (_attach if theirs else adapters.attach)(base, config.lora)
    if prepared:
        activations.recompute(built, Recompute.FULL if config.activation_checkpointing else Recompute.NONE)
    return built


def _quantise(base: Any, how: BaseQuantisation) -> None:
    """The layers that we quantise, by bitsandbytes."""
    bnb = importlib.import_module("bitsandbytes").nn
    for name, layer in quantised_base.chosen(base).items():
        kind = {"quant_type": str(how.format), "compress_statistics": how.double}
        found = bnb.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=layer.weight.dtype, **kind
        )
        weight = bnb.Params4bit(layer.weight.detach().cpu(), requires_grad=False, **kind)
        found.weight = weight.to(layer.weight.device)
        base.set_submodule(name, found)
    base.is_loaded_in_4bit = True  # PEFT asks for it before it looks at the layers


def _attach(base: PreTrainedModel, lora: Lora) -> PeftModel:
    settings = LoraConfig(
        r=lora.rank, lora_alpha=int(lora.alpha), lora_dropout=lora.dropout, target_modules="all-linear",
        use_dora=lora.dora, task_type="CAUSAL_LM",
    )  # fmt: skip
    return cast("PeftModel", get_peft_model(base, settings))


def train_state(config: RunConfig, built: nn.Module, data: Rows, device: torch.device) -> TrainState:
    layout = mesh.build(config, RankInfo(0, 1, 0, device))
    return TrainState(
        config=config,
        mesh=layout,
        engine=engines.build(built, config, layout),
        rows=data,
        sampler=sampler(config, len(data)),
        sharding=BatchSharding(config.batch.per_device, layout.data_size),
    )


def full_rows(count: int, length: int, vocabulary: int) -> Rows:
    """Random tokens, each of which is a target but the first; the model sees `length` of a row."""
    random = np.random.default_rng(SEED)
    tokens = random.integers(0, vocabulary, count * (length + 1), dtype=np.int32)
    offsets = np.arange(count + 1, dtype=np.int64) * (length + 1)
    targets = np.ones(len(tokens), np.bool_)
    targets[offsets[:-1]] = False
    return Rows(tokens, targets, offsets, np.arange(1, count + 1, dtype=np.int32))


@contextmanager
def nccl(device: torch.device) -> Iterator[None]:
    """A process group of one rank."""
    store = dist.HashStore()  # type: ignore[attr-defined]  # torch does not list it in __all__
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1, device_id=device)
    yield
    dist.destroy_process_group()
