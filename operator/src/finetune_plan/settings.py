"""What an administrator decides for all jobs. The operator fills it from its environment; the CLI uses the
defaults, so an offline answer is the answer of a cluster with default settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.resource import defaults
from finetune_api.runtime.protocol import STALL_SECONDS

from .accelerators import ACCELERATORS, Accelerator

CPU = "CPU"
"""gpu_type of a job that trains without accelerators."""


@dataclass(frozen=True)
class PlanSettings:
    trainer_image: str = "ghcr.io/finetune-operator/trainer:0.1.0"
    accelerators: Mapping[str, Accelerator] = field(default_factory=lambda: ACCELERATORS)
    networks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Network profiles by name, besides the built-in ones or changing them (network_profile.profile_of)."""
    default_networks: Mapping[str, str] = field(default_factory=dict)
    """gpu_type, or * for every one -> network profile of jobs on several nodes that name none."""
    privileged_networks: tuple[str, ...] = ()
    """Network profiles whose pods may have more rights than Pod Security's level restricted leaves them."""
    service_accounts: tuple[str, ...] = ()
    """Service accounts that a job may name in pods.serviceAccountName."""
    shared_memory: str = "8Gi"
    """Size of /dev/shm where neither pods.sharedMemory nor pods.memory sets one: NCCL's buffers of one node."""
    grace_period_seconds: int = 300
    """Seconds for one step and a checkpoint, where lifecycle.terminationGracePeriodSeconds is absent."""
    stall_seconds: int = STALL_SECONDS
    """Seconds without progress that are never a stall; 0: none is."""
    backoff_seconds: float = defaults.BACKOFF_SECONDS
    """Delay of a restart after the first failure; 0 restarts at once, always."""
    max_backoff_seconds: float = defaults.MAX_BACKOFF_SECONDS
    max_free_restarts: int = defaults.MAX_FREE_RESTARTS
    """Restarts that cost nothing and follow each other without a new checkpoint."""
    eviction_seconds: int | None = None
    """Seconds for which pods stay on a node that does not answer; None: as long as the cluster says."""
    dead_node_seconds: int | None = None
    """Seconds after its termination grace period until a pod on a node that does not answer is deleted by force;
    None: never."""
    active_deadline_seconds: int | None = None
    """Of jobs without lifecycle.activeDeadlineSeconds."""
    ttl_seconds_after_finished: int | None = None
    """Of jobs without lifecycle.ttlSecondsAfterFinished."""
