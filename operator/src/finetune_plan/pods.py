"""The pod of one replica: resources, volumes, security. Passes Pod Security's restricted level as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.resource import defaults, names
from finetune_api.runtime.protocol import REPORT_ENV

from . import network_pod
from .security import container_security, pod_security
from .workload import RENDEZVOUS_PORT, Workload

NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
"""Taints of a node that does not answer, which evict pods."""


@dataclass(frozen=True)
class TrainerContainer:
    """What the backend decides of the trainer's container."""

    name: str
    port: str
    """Name of the port of rank 0 at which the others find it."""
    env: Sequence[dict[str, Any]] = ()
    """Besides the workload's."""


def pod_template(work: Workload, trainer: TrainerContainer) -> dict[str, Any]:
    """A PodTemplateSpec."""
    network = work.network.annotations if work.network else {}
    annotations = {**work.job.pods.annotations.value, **network} | {names.RUN_CONFIG_ANNOTATION: work.config_json}
    return {"metadata": {"labels": dict(work.labels), "annotations": annotations}, "spec": _pod(work, trainer)}


def _pod(work: Workload, trainer: TrainerContainer) -> dict[str, Any]:
    pods = work.job.pods
    volumes, mounts = _volumes(work)
    grace = work.job.lifecycle.grace_period.value or work.settings.grace_period_seconds
    optional = {
        "nodeSelector": pods.node_selector.value,
        "tolerations": _tolerations(work),
        "priorityClassName": pods.priority_class.value,
        "serviceAccountName": pods.service_account.value,
        "imagePullSecrets": [{"name": n} for n in pods.image_pull_secrets.value],
        "affinity": _affinity(work),
    }
    network = network_pod.spec(work.network) if work.network else {}
    return {k: v for k, v in optional.items() if v} | network | {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace,
        "securityContext": pod_security(),
        "containers": [_container(work, trainer, mounts)],
        "volumes": volumes,
    }  # fmt: skip


def _container(work: Workload, trainer: TrainerContainer, mounts: list[dict[str, Any]]) -> dict[str, Any]:
    policy = work.job.pods.image_pull_policy.value
    return {
        "name": trainer.name,
        "image": work.image,
        **({"imagePullPolicy": policy} if policy else {}),
        "command": list(work.contract.command),
        "env": [*({"name": name, "value": value} for name, value in sorted(work.env.items())), *trainer.env],
        "ports": [{"name": trainer.port, "containerPort": RENDEZVOUS_PORT}],
        "resources": _resources(work),
        "securityContext": container_security(work.network),
        "terminationMessagePath": work.contract.env[REPORT_ENV],
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    }  # fmt: skip


def _resources(work: Workload) -> dict[str, Any]:
    """GPUs as limits, as Kubernetes wants extended resources; memory as request and limit alike."""
    memory, cpu = work.job.pods.memory.value, work.job.pods.cpu.value
    requests = {"cpu": cpu or str(work.processes_per_node), "memory": memory or _shared_memory(work)}
    limits = {"memory": memory} if memory else {}
    if work.accelerator:
        devices = {work.accelerator.resource: work.processes_per_node}
        devices |= network_pod.resources(work.network) if work.network else {}
        claims = network_pod.claims(work.network) if work.network else []
        found = {"requests": requests | devices, "limits": limits | devices}
        return found | ({"claims": claims} if claims else {})
    return {"requests": requests, **({"limits": limits} if limits else {})}


def _shared_memory(work: Workload) -> str:
    """Size of /dev/shm. Memory volumes count as the pod's memory."""
    given, memory = work.job.pods.shared_memory.value, work.job.pods.memory.value
    return given or (_half(memory) if memory else work.settings.shared_memory)


def _half(quantity: str) -> str:
    """Half of a quantity, whole where the number is even: 64Gi -> 32Gi, 1.5Gi -> 0.75Gi."""
    digits = quantity.rstrip("mkMGTPi")
    value = float(digits) / 2
    return f"{value:g}{quantity.removeprefix(digits)}"


def _tolerations(work: Workload) -> list[dict[str, Any]]:
    """The job's own; where it does not say them, that of its GPUs, and how long pods stay on a dead node."""
    own, seconds = list(work.job.pods.tolerations.value or []), work.settings.eviction_seconds
    if work.accelerator and not any(_is_of(work.accelerator.taint, each) for each in own):
        own.append({"key": work.accelerator.taint, "operator": "Exists", "effect": "NoSchedule"})
    if seconds is None:
        return own
    keys = {t.get("key") or "" for t in own if t.get("effect") in (None, "NoExecute")}  # without a key: every taint
    eviction = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}
    return [*own, *({"key": key, **eviction} for key in NODE_TAINTS if not keys & {key, ""})]


def _is_of(taint: str, toleration: dict[str, Any]) -> bool:
    """Whether it speaks of a taint that keeps pods off. Without a key it speaks of every one."""
    return (toleration.get("key") or taint) == taint and toleration.get("effect") in (None, "", "NoSchedule")


def _affinity(work: Workload) -> dict[str, Any] | None:
    """Terms of an affinity are alternatives, so each has to name the avoided nodes."""
    kinds = [{"matchExpressions": each} for each in work.accelerator.expressions()] if work.accelerator else []
    avoided = [  # by name, which a label may not have; the API allows one value in each
        {"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in work.avoided_nodes
    ]
    terms = [{**kind, **({"matchFields": avoided} if avoided else {})} for kind in (kinds or [{}])]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"nodeAffinity": required} if any(terms) else None


def _volumes(work: Workload) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and their mounts, in one fixed order."""
    paths, memory = work.contract.paths, {"medium": "Memory", "sizeLimit": _shared_memory(work)}
    pairs: list[tuple[str, dict[str, Any], str]] = [
        ("run-config", {"downwardAPI": {"items": [_config_item()]}}, paths["run-config"]),
        ("shared-memory", {"emptyDir": memory}, paths["shared-memory"]),
        ("scratch", {"emptyDir": {}}, paths["scratch"]),
        ("tmp", {"emptyDir": {}}, paths["tmp"]),
    ]
    if not work.job.output.value:
        pairs.append(("output", {"emptyDir": {}}, paths["output"]))
    for i, claim in enumerate(sorted({p.claim for p in work.mounts if p.claim})):
        pairs.append((f"claim-{i}", {"persistentVolumeClaim": {"claimName": claim}}, f"{paths['claims']}/{claim}"))
    for i, name in enumerate(sorted({p.config_map for p in work.mounts if p.config_map})):
        pairs.append((f"configmap-{i}", {"configMap": {"name": name}}, f"{paths['configmaps']}/{name}"))
    cache = work.job.pods.cache_claim.value
    if cache:
        pairs.append(("cache", {"persistentVolumeClaim": {"claimName": cache}}, paths["cache"]))
    token = work.job.pods.hugging_face.value
    if token:
        pairs.append(("hugging-face", _secret(token), f"{paths['credentials']}/hugging-face"))
    network = work.network
    return (
        [{"name": n, **v} for n, v, _ in pairs] + (network_pod.volumes(network) if network else []),
        [_mount(n, v, path) for n, v, path in pairs] + (network_pod.mounts(network) if network else []),
    )


def _config_item() -> dict[str, Any]:
    return {"path": "run.json", "fieldRef": {"fieldPath": f"metadata.annotations['{names.RUN_CONFIG_ANNOTATION}']"}}


def _secret(token: dict[str, str]) -> dict[str, Any]:
    item = {"key": token.get("key", defaults.TOKEN_KEY), "path": "token"}
    return {"secret": {"secretName": token["secretName"], "items": [item], "defaultMode": 0o440}}


def _mount(name: str, volume: dict[str, Any], path: str) -> dict[str, Any]:
    read_only = {"readOnly": True} if {"downwardAPI", "configMap", "secret"} & set(volume) else {}
    return {"name": name, "mountPath": path, **read_only}
