"""What runs, independent of any backend: replicas, command, environment, volumes, resources.

plan/backends renders it for a cluster; `finetune run` executes the same replicas as local processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_api.resource import names
from finetune_api.runtime import protocol
from finetune_api.validation import uris

from .accelerators import Accelerator
from .contract import PATHS, Contract
from .job_settings import JobSettings
from .mounts import Mount, mount
from .resolve import Resolution, is_cpu
from .runconfig import output_uri
from .settings import PlanSettings

if TYPE_CHECKING:
    from .network_profile import NetworkProfile

TERMINATION_LOG = "/dev/termination-log"
RENDEZVOUS_PORT = 23456


@dataclass(frozen=True)
class Workload:
    """One run of a job: `nodes` equal replicas, each starting `processes_per_node` ranks."""

    name: str
    run: int
    nodes: int
    processes_per_node: int
    contract: Contract
    config_json: str
    image: str
    labels: Mapping[str, str]
    accelerator: Accelerator | None
    mounts: tuple[Mount, ...]
    """Where model, data and output lie."""
    job: JobSettings
    """For the parts that only pods have."""
    settings: PlanSettings
    network: NetworkProfile | None = None
    """What pods need for the network between them; None: nothing."""
    avoided_nodes: tuple[str, ...] = ()
    """Names of nodes that the pods keep off."""

    @property
    def env(self) -> dict[str, str]:
        """Of the trainer: the operator's variables, over them those of the network, over these the job's own."""
        network = self.network.env if self.network else {}
        return {**self.contract.env, **network} | {e["name"]: e["value"] for e in self.job.pods.env.value}


def workload(resolved: Resolution, settings: PlanSettings, run_number: int = 1, uid: str = "") -> Workload:
    """The workload of one run; `uid` is that of the FinetuneJob, where a cluster has it."""
    job, layout = resolved.job, resolved.layout
    return Workload(
        name=names.run_name(job.name, run_number),
        run=run_number,
        nodes=layout.nodes,
        processes_per_node=layout.gpus_per_node,
        contract=Contract(("python", "-m", "finetune_trainer"), _environment(job, settings), PATHS),
        config_json=resolved.config_json,
        image=job.pods.image.value or settings.trainer_image,
        labels=_labels(job, run_number, uid),
        accelerator=None if is_cpu(job) else settings.accelerators[job.gpu_type.value.upper()],
        mounts=_mounts(job),
        job=job,
        settings=settings,
        network=resolved.network.profile,
    )


def rendezvous(work: Workload, node_rank: int, address: str, port: int) -> dict[str, str]:
    """The rendezvous variables that a backend sets on each pod, for starting replicas without one."""
    return {
        protocol.NODES_ENV: str(work.nodes),
        protocol.NODE_RANK_ENV: str(node_rank),
        protocol.MASTER_ADDR_ENV: address,
        protocol.MASTER_PORT_ENV: str(port),
    }


def _environment(job: JobSettings, settings: PlanSettings) -> dict[str, str]:
    env = {
        protocol.CONFIG_ENV: f"{PATHS['run-config']}/run.json",
        protocol.REPORT_ENV: TERMINATION_LOG,
        protocol.STALL_ENV: str(settings.stall_seconds),
        "HF_HOME": f"{PATHS['cache' if job.pods.cache_claim.value else 'scratch']}/huggingface",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if job.pods.hugging_face.value:
        env["HF_TOKEN_PATH"] = f"{PATHS['credentials']}/hugging-face/token"
    return env


def _labels(job: JobSettings, run_number: int, uid: str) -> dict[str, str]:
    ours = {names.JOB_LABEL: job.name, names.RUN_LABEL: str(run_number)} | ({names.JOB_UID_LABEL: uid} if uid else {})
    return dict(job.pods.labels.value) | ours


def _mounts(job: JobSettings) -> tuple[Mount, ...]:
    named = (
        (job.model.value, uris.MODEL),
        (job.lora.source.value, uris.ADAPTER),
        (job.data.train.value, uris.ROWS),
        (job.data.validation.value, uris.ROWS),
        (output_uri(job), uris.OUTPUT),
    )
    return tuple(mount(uri, use) for uri, use in named if uri)
