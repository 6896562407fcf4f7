"""The transfer pod: short-lived, restricted, made of the trainer image, with one claim mounted.

It is removed when the transfer ends, however it ends; if we are killed, it ends by itself after IDLE_SECONDS and
goes with the job, which owns it.
"""

from __future__ import annotations

import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from finetune_api.resource.names import API_VERSION, KIND
from finetune_api.validation.predicates import find
from finetune_plan.mounts import CLAIMS
from finetune_plan.pod_reasons import REFUSED, match_reason
from finetune_plan.pods import USER
from finetune_plan.settings import PlanSettings

from . import inpod, pod_findings
from .cluster import Cluster
from .errors import ApiError, hindered
from .server import Json

CONTAINER = "transfer"
IDLE_SECONDS = 120
LONGEST_SECONDS = 24 * 3600
START_SECONDS = 900.0
"""How long the pod may take to start: images are large."""


@contextmanager
def carrier(
    cluster: Cluster, job: Json, claim: str, *, image: str | None, read_only: bool, say: Callable[[str], None]
) -> Iterator[str]:  # fmt: skip
    """Name of a running pod with the claim at CLAIMS/<claim>. Raises Hindered if it does not start."""
    name = f"{job['metadata']['name']}-transfer-{secrets.token_hex(2)}"
    body = manifest(job, name, claim, image=image, read_only=read_only)
    with interruptible():
        try:
            _create(cluster, body)
            _await(cluster, name, say)
            yield name
        finally:
            cluster.delete("v1", "pods", name)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP clean up as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def manifest(job: Json, name: str, claim: str, *, image: str | None, read_only: bool) -> Json:
    """The pod. It does not carry the labels of training pods: the operator has nothing to do with it."""
    pods: dict[str, Any] = find(job, "spec.pods") or {}
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    volumes = [{"name": "claim", "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}},
               {"name": "tmp", "emptyDir": {}}]  # fmt: skip
    kept = ("nodeSelector", "tolerations", "priorityClassName")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/managed-by": "finetune-cli", "app.kubernetes.io/component": "transfer"},
            "ownerReferences": [owner],
        },
        "spec": {
            **{key: pods[key] for key in kept if key in pods},
            "imagePullSecrets": [{"name": each} for each in pods.get("imagePullSecrets") or ()],
            "restartPolicy": "Never",
            "activeDeadlineSeconds": LONGEST_SECONDS,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
                                "fsGroupChangePolicy": "OnRootMismatch",
                                "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [_container(job, claim, image, read_only)],
            "volumes": volumes,
        },
    }  # fmt: skip


def image_of(job: Json) -> str:
    """The image that the job's own pods have, or would have under default settings."""
    found = find(job, "status.resolved.image") or find(job, "spec.pods.image") or PlanSettings().trainer_image
    return str(found)


def _container(job: Json, claim: str, image: str | None, read_only: bool) -> Json:
    policy = find(job, "spec.pods.imagePullPolicy")
    small = {"cpu": "500m", "memory": "512Mi"}
    return {
        "name": CONTAINER,
        "image": image or image_of(job),
        **({"imagePullPolicy": policy} if policy else {}),
        "command": ["python", "-c", inpod.text("stay"), str(IDLE_SECONDS)],
        "resources": {"requests": small, "limits": small},
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "claim", "mountPath": f"{CLAIMS}/{claim}", "readOnly": read_only},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }  # fmt: skip


def _create(cluster: Cluster, body: Json) -> None:
    """Raises Hindered where a rule of the namespace has no room for the pod."""
    try:
        cluster.create("v1", "pods", body)
    except ApiError as error:
        known = match_reason(REFUSED, error.message)
        if error.status != 403 or known.name == REFUSED[-1][1].name:
            raise
        remedy = "Wait until other pods of the namespace end, or ask whoever runs it."
        raise hindered(f"pod {body['metadata']['name']}", known.name, error.message, remedy) from None


def _await(cluster: Cluster, name: str, say: Callable[[str], None]) -> None:
    """Return when the pod runs; say what it waits for, once each."""
    told = set[str]()
    for pod in cluster.object_over_time("v1", "pods", name, seconds=START_SECONDS):
        phase = find(pod, "status.phase") if pod else "Deleted"
        if phase == "Running" and _ready(pod or {}):
            return
        if phase not in ("Pending", "Running"):
            raise hindered(f"pod {name}", "TransferFailed", f"The transfer pod has ended before its work: {phase}.",
                           "Try again; `kubectl get events` says what became of it.")  # fmt: skip
        for _, message, remedy in pod_findings.troubles(pod or {}, ()):
            if message not in told:
                say(f"the transfer pod waits: {message} {remedy}")
            told.add(message)
    why = " ".join(sorted(told)) or "Nobody says why."
    message = f"The transfer pod did not start in {START_SECONDS:.0f} s. {why}"
    raise hindered(f"pod {name}", "TransferNotStarted", message, "Mend what hinders it, and try again.")


def _ready(pod: Json) -> bool:
    return any(c["name"] == CONTAINER and c.get("ready") for c in find(pod, "status.containerStatuses") or ())
