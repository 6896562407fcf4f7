"""What runs, said without the words of any backend: replicas, command, environment, volumes, resources.

plan/backends renders it for a cluster; `finetune run` executes the same replicas as local processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.resource import names
from finetune_api.resource.aliases import DATA, MODEL
from finetune_api.runtime import protocol
from finetune_api.validation import uris
from finetune_api.validation.predicates import find

from .facts import get
from .mounts import Place, place
from .resolve import Resolution, is_cpu
from .runconfig import default_output, run_config
from .settings import Accelerator, PlanSettings

CONFIG_PATH = "/etc/finetune/run.json"
CREDENTIALS = "/etc/finetune/credentials"
SCRATCH = "/scratch"
CACHE = "/mnt/cache"
TERMINATION_LOG = "/dev/termination-log"
RENDEZVOUS_PORT = 23456


@dataclass(frozen=True)
class Workload:
    """One run of a job: `nodes` equal replicas, each starting `processes_per_node` ranks."""

    name: str
    run: int
    nodes: int
    processes_per_node: int
    command: tuple[str, ...]
    env: Mapping[str, str]
    config_json: str
    image: str
    labels: Mapping[str, str]
    accelerator: Accelerator | None
    places: tuple[Place, ...]
    """Where model, data and output lie."""
    spec: Mapping[str, Any]
    """The job's own words, for the parts that only pods have."""
    settings: PlanSettings


def workload(job: Resolution, settings: PlanSettings, run_number: int = 1, uid: str = "") -> Workload:
    """The workload of one run; `uid` is that of the FinetuneJob, where a cluster has it."""
    spec = job.spec
    return Workload(
        name=f"{job.name}-{run_number}",
        run=run_number,
        nodes=job.layout.nodes,
        processes_per_node=job.layout.gpus_per_node,
        command=("python", "-m", "finetune_trainer"),
        env=_environment(spec),
        config_json=run_config(job).model_dump_json(),
        image=get(spec, settings.trainer_image, "pods.image"),
        labels=_labels(job, run_number, uid),
        accelerator=None if is_cpu(spec) else settings.accelerators[spec["compute"]["gpu_type"].upper()],
        places=_places(job.name, spec),
        spec=spec,
        settings=settings,
    )


def replica(work: Workload, node_rank: int) -> str:
    """Name of a replica: of its pod, and of the Service under which the others find it."""
    return f"{work.name}-worker-{node_rank}"


def rendezvous(work: Workload, node_rank: int, address: str, port: int) -> dict[str, str]:
    """What each pod is told by the backend, for whoever starts replicas without one."""
    return {
        protocol.NODES_ENV: str(work.nodes),
        protocol.NODE_RANK_ENV: str(node_rank),
        protocol.MASTER_ADDR_ENV: address,
        protocol.MASTER_PORT_ENV: str(port),
    }


def _environment(spec: Mapping[str, Any]) -> dict[str, str]:
    env = {
        protocol.CONFIG_ENV: CONFIG_PATH,
        protocol.REPORT_ENV: TERMINATION_LOG,
        "HF_HOME": f"{CACHE if find(spec, 'storage.cacheClaim') else SCRATCH}/huggingface",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if find(spec, "network.profile") == "tcp":
        env["NCCL_IB_DISABLE"] = "1"
    if find(spec, "credentials.huggingFace"):
        env["HF_TOKEN_PATH"] = f"{CREDENTIALS}/hugging-face/token"
    return env | {e["name"]: e["value"] for e in find(spec, "pods.env") or ()}


def _labels(job: Resolution, run_number: int, uid: str) -> dict[str, str]:
    ours = {names.JOB_LABEL: job.name, names.RUN_LABEL: str(run_number)} | ({names.JOB_UID_LABEL: uid} if uid else {})
    return dict(find(job.spec, "pods.labels") or {}) | ours


def _places(name: str, spec: Mapping[str, Any]) -> tuple[Place, ...]:
    named = (
        (get(spec, None, *MODEL), uris.MODEL),
        (get(spec, None, *DATA), uris.ROWS),
        (find(spec, "data.validation_path"), uris.ROWS),
        (get(spec, default_output(name), "output.uri"), uris.OUTPUT),
    )
    return tuple(place(uri, use) for uri, use in named if uri)
