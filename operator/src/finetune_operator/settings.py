"""Settings of the operator, read once from the environment: FINETUNE_OPERATOR_<NAME>.

Each field states its unit, its default and the reason for it. `make generate` writes them into the chart's values
(helm_chart.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from finetune_plan.accelerators import ACCELERATORS, Accelerator
from finetune_plan.network import AUTO, EVERY_TYPE, NONE, TCP, known_names
from finetune_plan.network_profile import NAME, entry_schema, profile_of
from finetune_plan.settings import CPU, PlanSettings

_PLAN = PlanSettings()


class Settings(BaseSettings):
    """Settings of the operator."""

    model_config = SettingsConfigDict(
        env_prefix="FINETUNE_OPERATOR_", frozen=True, extra="ignore", env_parse_none_str="null"
    )

    watch_namespace: str = Field(
        default="",
        description="Namespace whose jobs are served. Empty (default): the whole cluster, with cluster roles.",
    )
    own_namespace: str = Field(
        default="default",
        description="Namespace of the operator's own Lease; it must be watched. The chart fills "
        "in watch_namespace, or the namespace of the release.",
    )
    kubeconfig: Path | None = Field(
        default=None,
        description="Kubeconfig to connect with. Absent (default): the pod's service account, else kubectl's own.",
    )
    trainer_image: str = Field(
        default=_PLAN.trainer_image,
        description="Image of jobs without pods.image. Default: the trainer of the operator's own version, because "
        "both sides of the run configuration are released together.",
    )
    service_accounts: tuple[str, ...] = Field(
        default=(),
        description="JSON list of service accounts that jobs may name in pods.serviceAccountName. Default: none, "
        "because a job would borrow their rights.",
    )
    accelerators: dict[str, Accelerator] = Field(
        default_factory=dict,
        description="JSON object of further or other accelerators by gpu_type: products (values of the node label "
        "nvidia.com/gpu.product), memory_gib, resource, labels (other labels of nodes -> values, on nodes without "
        "that one; neither products nor labels: any node with the resource). Default: none besides the built-in "
        "ones, one of which it replaces whole.",
    )
    networks: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="JSON object of network profiles by name: values (parameters of a built-in profile that only you "
        "know), and any field of a profile, which changes the built-in one of that name or of the name in base, or "
        "makes a new one. Default: the built-in ones as they are; docs/networks.md lists them.",
        json_schema_extra={"additionalProperties": entry_schema()},
    )
    default_networks: dict[str, str] = Field(
        default_factory=dict,
        description="JSON object of the network profile by gpu_type, or * for every one, of jobs on several nodes "
        "that name none. Default: none, so that such a job is refused instead of training over TCP unnoticed.",
    )
    privileged_networks: tuple[str, ...] = Field(
        default=(),
        description="JSON list of network profiles whose pods may have rights beyond Pod Security's level restricted "
        "(files, network or capabilities of the node). Default: none, because every author of jobs would have them.",
    )
    read_nodes: bool = Field(
        default=False,
        description="Whether labels and allocatable resources of nodes decide the network of a job for which nothing "
        "else does. Default: no, because the chart adds a cluster role that lists nodes.",
    )
    shared_memory: str = Field(
        default=_PLAN.shared_memory,
        description="Size of /dev/shm where a job sets none, as a quantity. Default 8Gi: NCCL's buffers of one node.",
    )
    grace_period_seconds: int = Field(
        default=_PLAN.grace_period_seconds,
        ge=30,
        description="Seconds that pods have for one more step and a checkpoint. Default 300: a large model's save.",
    )
    stall_seconds: int = Field(
        default=_PLAN.stall_seconds,
        ge=0,
        description="Seconds without progress after which the trainer kills a run that hangs, with the stacks of its "
        "ranks in the log (Stalled). Allowed are six times as many before the first step is done and while something "
        "is saved, and always five times the longest pause that the run has had. Default 600: far more than a batch "
        "takes; 0 allows everything.",
    )
    backoff_seconds: float = Field(
        default=_PLAN.backoff_seconds,
        ge=0,
        description="Seconds between a failure and the next run, doubled with every failure in a row for the same "
        "reason without a new checkpoint, and spread by a fifth. Default 10; 0 restarts at once. The first restart "
        "after lost pods never waits.",
    )
    max_backoff_seconds: float = Field(
        default=_PLAN.max_backoff_seconds,
        ge=0,
        description="Longest of these delays in seconds, before it is spread. Default 600: an outage of an hour is "
        "tried a few times, and its end is noticed within minutes.",
    )
    max_free_restarts: int = Field(
        default=_PLAN.max_free_restarts,
        ge=0,
        description="Restarts that cost a job nothing (its pods were preempted, evicted or deleted) between two "
        "checkpoints; one more fails the job. Default 10: with the delays, about forty minutes without progress.",
    )
    eviction_seconds: int | None = Field(
        default=_PLAN.eviction_seconds,
        ge=0,
        description="Seconds for which pods of new runs stay on a node that does not answer, until Kubernetes evicts "
        "them and the job restarts; pods.tolerations of a job win. Default: none, so what the cluster says, mostly "
        "300: a kubelet that is down for less, as in an upgrade, disturbs no training.",
    )
    dead_node_seconds: int | None = Field(
        default=_PLAN.dead_node_seconds,
        ge=1,
        description="Seconds after its termination grace period until a pod on a node that does not answer is "
        "deleted by force, so that the job continues. Default: never, because a node that is only cut off still "
        "writes to the output. The chart adds the right to delete pods.",
    )
    active_deadline_seconds: int | None = Field(
        default=_PLAN.active_deadline_seconds,
        ge=1,
        description="Value of lifecycle.activeDeadlineSeconds where a job sets none, pinned when it is accepted. "
        "Default: none.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=_PLAN.ttl_seconds_after_finished,
        ge=0,
        description="Value of lifecycle.ttlSecondsAfterFinished where a job sets none, pinned when it is accepted. "
        "Default: none, so that failed pods keep their logs until the job is deleted.",
    )
    workers: int = Field(
        default=16,
        ge=1,
        le=64,
        description="Jobs that are reconciled concurrently; at most half of them jobs in trouble, whose last pass "
        "failed or was slow. Default 16: eight are enough for one Python process on one core, since a pass waits for "
        "two or three answers of the API server.",
    )
    pass_seconds: float = Field(
        default=40,
        gt=0,
        description="Seconds until one pass over a job is given up and tried again later. Default 40: more than one "
        "request that times out.",
    )
    requests_per_second: float = Field(
        default=1000,
        gt=0,
        description="Requests to the API server per second, watches apart. Default 1000: more than one process can "
        "send, about 5 for each new job; Kubernetes' own fairness protects the server.",
    )
    request_burst: int = Field(
        default=1000, ge=1, description="Requests that may be sent at once. Default 1000: one second's worth."
    )
    request_timeout_seconds: float = Field(
        default=30, gt=0, description="Seconds until a request times out and is retried. Default 30."
    )
    resync_seconds: float = Field(
        default=30,
        gt=0,
        description="Seconds between two resyncs, which find and repair what a watch has missed. Default 30: a "
        "missed change is repaired within a minute, at the cost of one list of metadata of jobs, runs and pods. "
        "Where such a list takes longer than 3 s, resyncs are rarer: every ten times what it took, at most 36 s.",
    )
    progress_seconds: float = Field(
        default=10,
        gt=0,
        description="Seconds between two reads of one job's progress, and between two status writes that change "
        "only progress or text. Default 10. Many jobs share progress_reads_per_second.",
    )
    progress_reads_per_second: float = Field(
        default=50,
        gt=0,
        description="Reads of progress, and of why jobs are queued, per second over all jobs, and status writes that "
        "change only text: with more than 500 running jobs each is read, and with more than 500 unfinished ones "
        "written to, less often. "
        "Default 50: a read is one request that the API server passes on to a node.",
    )
    progress_readers: int = Field(
        default=16,
        ge=1,
        le=64,
        description="Logs that are read at once, at most two of one node. Default 16: a node that answers takes "
        "milliseconds, and one that hangs holds two readers for progress_timeout_seconds, then one now and then.",
    )
    progress_timeout_seconds: float = Field(
        default=5,
        gt=0,
        description="Seconds until a read of a log is given up. Its node is then left alone for 10 s, and longer "
        "after each failure in a row, up to two minutes. Default 5: the end of a log is a megabyte at most.",
    )
    canary_seconds: float = Field(
        default=30, gt=0, description="Seconds between two heartbeats through the API server. Default 30."
    )
    canary_patience_seconds: float = Field(
        default=120,
        gt=0,
        description="Seconds after which a heartbeat that was written but not seen means that a watch is dead: "
        "the process exits and Kubernetes restarts it. After two thirds of them the watches begin again in the "
        "process. Default 120: two thirds are longer than the 70 s of a silent watch.",
    )
    http_host: str = Field(
        default="0.0.0.0",  # noqa: S104
        description="Address of /healthz, /readyz and /metrics. Default: all: the kubelet probes from outside.",
    )
    http_port: int = Field(
        default=8080, ge=0, le=65535, description="Port of the same. Default 8080; 0 picks a free one."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least important log lines that are written. Default info: one line per change."
    )

    @model_validator(mode="after")
    def _lease_is_watched(self) -> Self:
        if self.watch_namespace not in ("", self.own_namespace):
            raise ValueError(
                f"own_namespace is {self.own_namespace!r}, but only {self.watch_namespace!r} is watched: "
                "the heartbeat would never be seen. Set both to the same namespace."
            )
        return self

    @model_validator(mode="after")
    def _gpus_can_be_found(self) -> Self:
        kinds: dict[str, str] = {CPU: "the gpu_type of jobs without GPUs"}
        for name, accelerator in self.accelerators.items():
            if accelerator.defect:
                raise ValueError(f"accelerators.{name}: {accelerator.defect}")
            if name.upper() in kinds:
                raise ValueError(f"accelerators.{name}: it is {kinds[name.upper()]}, too; keep one of them.")
            kinds[name.upper()] = f"accelerators.{name}"
        return self

    @model_validator(mode="after")
    def _networks_are_whole(self) -> Self:
        for name in self.networks:
            if not re.fullmatch(NAME, name) or name in (AUTO, NONE):
                raise ValueError(
                    f"networks.{name}: no name for a profile; use lower-case letters, digits and dashes."
                )
            try:
                profile_of(name, self.networks)
            except ValueError as error:
                raise ValueError(f"networks.{name}: {error}") from error
        self._profiles_leave_gpus_alone()
        known = known_names(self.plan())
        for key, name in self.default_networks.items():
            if name not in (*known, NONE):
                raise ValueError(
                    f"default_networks.{key}: {name!r} is no network profile; known are {', '.join(known)}."
                )
            self._default_can_be_used(key, name)
        for name in self.privileged_networks:
            if name not in known:
                raise ValueError(
                    f"privileged_networks: {name!r} is no network profile; known are {', '.join(known)}."
                )
        return self

    def _profiles_leave_gpus_alone(self) -> None:
        gpus = {accelerator.resource for accelerator in self.plan().accelerators.values()}
        for name in self.networks:
            if taken := gpus & profile_of(name, self.networks).resources.keys():
                what = ", ".join(sorted(taken))
                raise ValueError(f"networks.{name}: resources: {what} is what a job has its GPUs by; remove it.")

    def _default_can_be_used(self, key: str, name: str) -> None:
        """Jobs that say nothing would all be refused, by a reason that their authors cannot change."""
        kinds = (*sorted(self.plan().accelerators), EVERY_TYPE)
        if key.upper() not in kinds:
            raise ValueError(f"default_networks.{key}: no gpu_type; choose one of {', '.join(kinds)}.")
        profile = profile_of(TCP if name == NONE else name, self.networks)
        if profile.parameters:
            raise ValueError(
                f"default_networks.{key}: {name} lacks {', '.join(profile.parameters)}; "
                f"say it in networks.{name}.values."
            )
        if profile.privileges and name not in self.privileged_networks:
            raise ValueError(
                f"default_networks.{key}: {name} needs {', '.join(profile.privileges)}; "
                "name it in privileged_networks, too."
            )

    def plan(self) -> PlanSettings:
        """The part that decides what a job becomes."""
        return PlanSettings(
            trainer_image=self.trainer_image,
            accelerators={**ACCELERATORS, **{k.upper(): v for k, v in self.accelerators.items()}},
            networks=self.networks,
            default_networks={k.upper(): v for k, v in self.default_networks.items()},
            privileged_networks=self.privileged_networks,
            service_accounts=self.service_accounts,
            shared_memory=self.shared_memory,
            grace_period_seconds=self.grace_period_seconds,
            stall_seconds=self.stall_seconds,
            backoff_seconds=self.backoff_seconds,
            max_backoff_seconds=self.max_backoff_seconds,
            max_free_restarts=self.max_free_restarts,
            eviction_seconds=self.eviction_seconds,
            dead_node_seconds=self.dead_node_seconds,
            active_deadline_seconds=self.active_deadline_seconds,
            ttl_seconds_after_finished=self.ttl_seconds_after_finished,
        )
