"""Plays the kubelet: writes the status that a node would write for a pod, where no node is wanted.

For tests of what the operator and the Training Operator make of a pod's life, with neither kwok nor a kubelet.
"""

from datetime import UTC, datetime

from testbed.api import Api, Json

_REASONS = {True: ("Succeeded", "Completed"), False: ("Failed", "Error")}


def run_pod(api: Api, namespace: str, name: str) -> Json:
    """Every container of the pod is running and ready."""
    ready = [{"type": kind, "status": "True"} for kind in ("Initialized", "ContainersReady", "Ready")]
    state = {"ready": True, "started": True, "state": {"running": {"startedAt": _now()}}}
    return _write(api, namespace, name, {"phase": "Running", "startTime": _now(), "conditions": ready}, state)


def end_pod(api: Api, namespace: str, name: str, *, exit_code: int = 0, message: str = "", reason: str = "") -> Json:
    """Every container has ended with exit_code and left `message` in its termination log.

    reason replaces the container's own (Completed, Error), for example by OOMKilled.
    """
    phase, usual = _REASONS[exit_code == 0]
    ended = {"exitCode": exit_code, "reason": reason or usual, "message": message, "finishedAt": _now()}
    return _write(
        api, namespace, name, {"phase": phase}, {"ready": False, "started": False, "state": {"terminated": ended}}
    )


def bind_pod(api: Api, namespace: str, name: str, node: str) -> None:
    """The scheduler's word: from now on a deletion gives the pod its grace, and remove_pod ends it."""
    body: Json = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"name": node}}
    api.request("POST", f"/api/v1/namespaces/{namespace}/pods/{name}/binding", body)


def remove_pod(api: Api, namespace: str, name: str) -> None:
    """The kubelet's last word about a pod that was deleted: it has ended."""
    api.delete(f"/api/v1/namespaces/{namespace}/pods/{name}", gracePeriodSeconds="0")


def reject_pod(api: Api, namespace: str, name: str, reason: str, message: str) -> Json:
    """The kubelet takes a pod that the scheduler gave it and does not start it: there is no container status."""
    status = {"phase": "Failed", "reason": reason, "message": f"Pod was rejected: {message}", "startTime": _now()}
    return api.patch(f"/api/v1/namespaces/{namespace}/pods/{name}/status", {"status": status})


def fail_init(api: Api, namespace: str, name: str, container: str, exit_code: int, message: str) -> Json:
    """An init container, which somebody's webhook added, fails; the trainer's own container never starts."""
    ended = {"exitCode": exit_code, "reason": "Error", "message": message, "finishedAt": _now()}
    init = {"name": container, "image": "", "imageID": "", "ready": False, "restartCount": 0, "started": False}
    main = init | {"name": "pytorch", "state": {"waiting": {"reason": "PodInitializing"}}}
    status = {"phase": "Failed", "initContainerStatuses": [init | {"state": {"terminated": ended}}],
              "containerStatuses": [main]}  # fmt: skip
    return api.patch(f"/api/v1/namespaces/{namespace}/pods/{name}/status", {"status": status})


def _write(api: Api, namespace: str, name: str, status: Json, container: Json) -> Json:
    path = f"/api/v1/namespaces/{namespace}/pods/{name}"
    containers = [
        {"name": entry["name"], "image": entry["image"], "imageID": "", "restartCount": 0, **container}
        for entry in api.get(path)["spec"]["containers"]
    ]
    return api.patch(f"{path}/status", {"status": status | {"containerStatuses": containers}})


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
