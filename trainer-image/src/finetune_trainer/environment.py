"""The place of this process in the run: rank, device, process group, threads and random numbers.

Called by worker.py. The launcher has set the variables; nothing else in a rank reads the environment.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from finetune_api.runtime.choices import Device

from .errors import ConfigRefused
from .handoff import STORE_ENV

MEET = timedelta(minutes=15)
"""How long ranks wait for the others at the start: pods of one run may be scheduled minutes apart."""
ANSWER = timedelta(minutes=30)
"""How long a rank waits inside a collective. Rank 0 may be writing a large result meanwhile."""


@dataclass(frozen=True)
class Place:
    """One rank. The whole world is data parallel in this version."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device


@contextmanager
def joined(environment: Mapping[str, str], device: Device) -> Iterator[Place]:
    """The place of this process, with the process group up.

    Left by an error, the group is not taken down: that would wait for ranks that may not answer any more.
    """
    rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    local_rank = int(environment["LOCAL_RANK"])
    place = Place(rank, world_size, local_rank, _device(device, local_rank))
    descriptor = environment.get(STORE_ENV)
    store = dist.TCPStore(  # type: ignore[attr-defined]  # torch does not list it in __all__
        environment["MASTER_ADDR"],
        int(environment["MASTER_PORT"]),
        world_size,
        is_master=rank == 0,
        timeout=MEET,
        master_listen_fd=int(descriptor) if descriptor else None,
    )
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device is Device.CUDA else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=ANSWER,
        device_id=place.device if device is Device.CUDA else None,
    )
    yield place
    dist.barrier()  # rank 0 owns the store: it must not leave before the others are done with it
    dist.destroy_process_group()


def _device(device: Device, local_rank: int) -> torch.device:
    if device is Device.CPU:
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigRefused(
            f"local rank {local_rank} needs a GPU of its own, but {torch.cuda.device_count()} are visible; "
            "ask for as many GPUs per node as processes_per_node, or set gpu_type: CPU"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def seed(number: int, rank: int | None = None) -> None:
    """Seed every generator: alike on all ranks for what they initialise together, or `rank`'s own (dropout)."""
    material = [number] if rank is None else [number, rank]
    state = int(np.random.SeedSequence(material).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)
