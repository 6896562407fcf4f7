"""How much memory the gradients of several micro batches take, in a process that gives freed tensors back at once."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from finetune_api.runtime.choices import Engine
from finetune_trainer import environment, mesh, model
from finetune_trainer.collate import TokenBatch, collate
from finetune_trainer.engines.fsdp2 import Fsdp2
from finetune_trainer.environment import RankInfo
from trainer import models
from trainer.parity_cases import rows

LAYERS = 24
MICRO_BATCHES = 3
_MMAP_THRESHOLD, _SMALLEST = -3, 2**16
"""mallopt's parameter, and the bytes from which on a block is memory of its own, which free returns."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank."""

    grown: int
    """The most that the process had in addition, after any of the micro batches."""
    whole: int
    """All gradients of the model in fp32."""
    largest: int
    """The gradients of the largest group of parameters that are gathered together."""


class WholeGradients(Fsdp2):
    """Reduces gradients to shards once a step: until then every rank has all of them."""

    @contextmanager
    def _gradient_sync(self, last: bool) -> Iterator[None]:
        self._root.set_requires_gradient_sync(last)
        yield


def memory_of(engine_class: type[Fsdp2], engine: Engine, precision: str) -> Memory:
    """The memory of a step after the first, which has allocated what stays."""
    give_back_at_once()
    found = sharded_engine(engine_class, engine, precision)
    data = rows(2 * MICRO_BATCHES)
    batches = [collate(data, np.arange(i, i + 2)) for i in range(0, len(data), 2)]
    samples: list[int] = []
    _train(found, batches[:1], [])
    found.evaluate(batches[0])
    before = anonymous()
    _train(found, batches, samples)
    groups = _groups(found.model)
    return Memory(max(samples) - before, groups.total(), max(groups.values()))


def _groups(sharded: nn.Module) -> Counter[str]:
    """Bytes in fp32 of each group of parameters: every layer is one, and what is outside of them."""
    found: Counter[str] = Counter()
    for name, parameter in sharded.named_parameters():
        found[name.split(".")[2] if name.startswith("model.layers.") else ""] += parameter.numel() * 4
    return found


def _train(engine: Fsdp2, batches: list[TokenBatch], samples: list[int]) -> None:
    """One step, with a sample after every micro batch."""

    def sampled() -> Iterator[TokenBatch]:
        for batch in batches:
            yield batch
            samples.append(anonymous())

    def stop() -> bool:
        samples.append(anonymous())  # after the last one
        return False

    engine.train(sampled(), targets=100, learning_rate=1e-3, max_norm=1.0, stop=stop)


def give_back_at_once() -> None:
    """What is freed leaves the process."""
    assert ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _SMALLEST) == 1


def sharded_engine(engine_class: type[Fsdp2], engine: Engine, precision: str) -> Fsdp2:
    rank, world = dist.get_rank(), dist.get_world_size()
    nodes = 2 if engine is Engine.HSDP else 1
    config = models.run_config(
        Path("model"), Path("data"), Path("output"),
        engine=engine, precision=precision,
        mesh__nodes=nodes, mesh__processes_per_node=world // nodes, mesh__data_parallel=world,
    )  # fmt: skip
    environment.seed(config.seed)
    deep = _model()
    model.prepare(deep, config)
    return engine_class(deep, config, mesh.build(config, RankInfo(rank, world, rank, torch.device("cpu"))))


def _model() -> Any:
    """Nearly all parameters are in its layers."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1024, hidden_size=256, intermediate_size=512, num_hidden_layers=LAYERS,
            num_attention_heads=4, num_key_value_heads=2, bos_token_id=None, eos_token_id=257, pad_token_id=257,
        )
    )  # fmt: skip


def anonymous() -> int:
    """Bytes of this process's memory that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
