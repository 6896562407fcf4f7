"""The transfer pod: short-lived, restricted, made of the trainer image, with one claim mounted.

It is deleted when the transfer ends, however it ends. If this process is killed, the pod ends by itself after
IDLE_SECONDS, and it is deleted with the job, which owns it.
"""

from __future__ import annotations

import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

from finetune_api.resource.names import API_VERSION, KIND
from finetune_api.validation.predicates import find
from finetune_cli.local.supervise import handled_signals
from finetune_plan.mounts import CLAIMS
from finetune_plan.pod_reasons import REFUSED, match_reason
from finetune_plan.security import container_security, pod_security
from finetune_plan.settings import PlanSettings

from . import pod_findings, pod_programs
from .api_client import Json
from .cluster import ClusterClient
from .errors import Forbidden, failed

CONTAINER = "transfer"
IDLE_SECONDS = 120
DEADLINE_SECONDS = 24 * 3600
START_SECONDS = 900.0
"""How long the pod may take to start: images are large."""


@contextmanager
def transfer_pod(
    cluster: ClusterClient, job: Json, claim: str, *, image: str | None, read_only: bool,
    message: Callable[[str], None],
) -> Iterator[str]:  # fmt: skip
    """Name of a running pod with the claim at CLAIMS/<claim>. Raises OperationFailed if it does not start."""
    name = f"{job['metadata']['name']}-transfer-{secrets.token_hex(2)}"
    body = manifest(job, name, claim, image=image, read_only=read_only)
    with interruptible():
        try:
            _create(cluster, body)
            _wait_until_ready(cluster, name, message)
            yield name
        finally:
            cluster.delete("v1", "pods", name)


def interruptible() -> AbstractContextManager[None]:
    """SIGTERM and SIGHUP clean up as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    return handled_signals((signal.SIGTERM, signal.SIGHUP), interrupt)


def manifest(job: Json, name: str, claim: str, *, image: str | None, read_only: bool) -> Json:
    """The pod. Without the labels of training pods, so that the operator ignores it."""
    pods: dict[str, Any] = find(job, "spec.pods") or {}
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    volumes = [{"name": "claim", "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}},
               {"name": "tmp", "emptyDir": {}}]  # fmt: skip
    copied = ("nodeSelector", "tolerations", "priorityClassName")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/managed-by": "finetune-cli", "app.kubernetes.io/component": "transfer"},
            "ownerReferences": [owner],
        },
        "spec": {
            **{key: pods[key] for key in copied if key in pods},
            "imagePullSecrets": [{"name": each} for each in pods.get("imagePullSecrets") or ()],
            "restartPolicy": "Never",
            "activeDeadlineSeconds": DEADLINE_SECONDS,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": pod_security(),
            "containers": [_container(job, claim, image, read_only)],
            "volumes": volumes,
        },
    }


def image_of(job: Json) -> str:
    """The image of the job's own pods, or the one that they would have under default settings."""
    found = find(job, "status.resolved.image") or find(job, "spec.pods.image") or PlanSettings().trainer_image
    return str(found)


def _container(job: Json, claim: str, image: str | None, read_only: bool) -> Json:
    policy = find(job, "spec.pods.imagePullPolicy")
    small = {"cpu": "500m", "memory": "512Mi"}
    return {
        "name": CONTAINER,
        "image": image or image_of(job),
        **({"imagePullPolicy": policy} if policy else {}),
        "command": ["python", "-c", pod_programs.source("idle"), str(IDLE_SECONDS)],
        "resources": {"requests": small, "limits": small},
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "claim", "mountPath": f"{CLAIMS}/{claim}", "readOnly": read_only},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }


def _create(cluster: ClusterClient, body: Json) -> None:
    """Raises OperationFailed if a quota or a policy of the namespace refuses the pod."""
    try:
        cluster.create("v1", "pods", body)
    except Forbidden as error:
        known = match_reason(REFUSED, error.message)
        if known.name == REFUSED[-1][1].name:
            raise
        remedy = "Wait until other pods of the namespace end, or ask the administrator of the cluster."
        raise failed(f"pod {body['metadata']['name']}", known.name, error.message, remedy) from None


def _wait_until_ready(cluster: ClusterClient, name: str, message: Callable[[str], None]) -> None:
    """Return when the pod is ready; report each reason for waiting once."""
    reported = set[str]()
    for pod in cluster.watch("v1", "pods", name, seconds=START_SECONDS):
        phase = find(pod, "status.phase") if pod else "Deleted"
        if phase == "Running" and _is_ready(pod or {}):
            return
        if phase not in ("Pending", "Running"):
            raise failed(f"pod {name}", "TransferFailed", f"The transfer pod ended before the transfer: {phase}.",
                         "Try again. `kubectl get events` shows the cause.")  # fmt: skip
        for _, text, remedy in pod_findings.pending_reasons(pod or {}, ()):
            if text not in reported:
                message(f"waiting for the transfer pod: {text} {remedy}")
            reported.add(text)
    why = " ".join(sorted(reported)) or "Its status does not show the cause."
    text = f"The transfer pod did not start within {START_SECONDS:.0f} s. {why}"
    raise failed(f"pod {name}", "TransferNotStarted", text, "Resolve the cause, and try again.")


def _is_ready(pod: Json) -> bool:
    return any(c["name"] == CONTAINER and c.get("ready") for c in find(pod, "status.containerStatuses") or ())
