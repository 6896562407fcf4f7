"""Rank, device, process group and random seeds of this process.

Called by worker.py. The launcher has set the variables; nothing else in a rank reads the environment.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
import torch.utils.deterministic as torch_deterministic

from finetune_api.runtime.choices import Device
from finetune_api.runtime.exits import MEANINGS, Exit

from . import rendezvous
from .errors import ConfigRefused, HardwareFailed

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""For one collective. Rank 0 may write a large result while the others wait."""

GIVEN_GPUS_ENV = "NVIDIA_VISIBLE_DEVICES"
"""UUIDs (GPU-...) of the GPUs that NVIDIA's device plugin gives to a pod; other words elsewhere."""


@dataclass(frozen=True)
class RankInfo:
    """One rank. Where it stands among the others is in its mesh (mesh.py)."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device


@contextmanager
def process_group(
    environment: Mapping[str, str], device: Device, waiting: Callable[[], None] = lambda: None
) -> Iterator[RankInfo]:
    """Initialise the process group; yields this process's rank and device.

    `waiting` is called as long as ranks are missing.
    After an error the group is not destroyed: that would wait for ranks that may not respond.
    """
    rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    local_rank = int(environment["LOCAL_RANK"])
    given = environment.get(GIVEN_GPUS_ENV, "").count("GPU-")
    rank_info = RankInfo(rank, world_size, local_rank, _device(device, local_rank, given))
    store = rendezvous.store(environment, waiting)
    store.set_timeout(COLLECTIVE_TIMEOUT)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device is Device.CUDA else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=rank_info.device if device is Device.CUDA else None,
    )
    yield rank_info
    dist.barrier()  # rank 0 hosts the store: it must not exit while the others still use it
    dist.destroy_process_group()


def choose_kernels(*, tf32: bool, deterministic: bool) -> None:
    """What torch may use. Before anything else of a rank: cuBLAS reads its variable when it starts."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it, cuBLAS refuses
        torch.use_deterministic_algorithms(True)
        torch_deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs, and nothing reads it


def _device(device: Device, local_rank: int, given: int) -> torch.device:
    """The device of a rank. `given`: GPUs that the node says it has given to the pod; 0 if it does not say."""
    if device is Device.CPU:
        return torch.device("cpu")
    if given > torch.cuda.device_count():
        raise HardwareFailed(
            f"the node has given {given} GPUs to this pod, but {torch.cuda.device_count()} are visible: "
            f"{MEANINGS[Exit.HARDWARE_FAILED].remedy}"
        )
    if local_rank >= torch.cuda.device_count():
        raise ConfigRefused(
            f"local rank {local_rank} needs a GPU of its own, but {torch.cuda.device_count()} are visible; "
            "ask for as many GPUs per node as processes_per_node, or set gpu_type: CPU"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def seed(number: int, rank: int | None = None) -> None:
    """Seed every generator: with the same seed on all ranks (initialisation), or with a seed per rank (dropout)."""
    material = [number] if rank is None else [number, rank]
    state = int(np.random.SeedSequence(material).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)
