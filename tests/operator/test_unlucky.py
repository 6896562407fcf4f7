"""What `kubectl get events` and `kubectl describe` show of eight unlucky jobs: each says what a person can do.

With `-s` the tests print it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from builders import Json
from finetune_api.runtime.exits import Exit
from operating.team import SMALL, Team, condition, message
from testbed.control_plane import ControlPlane
from testbed.kwok import Node
from testbed.pods import bind_pod
from testbed.watch import wait_for_all

POD = "sample-1-worker-0"
HOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


def data_is_refused(team: Team) -> None:
    team.submit(SMALL)
    team.start(pods=1)
    team.end(POD, Exit.DATA_REFUSED, "data /data/train.jsonl: line 3 is no JSON: Expecting ',' delimiter (column 17)")


def image_is_not_there(team: Team) -> None:
    team.submit(SMALL)
    team.until_run("sample-1", pods=1)
    said = 'Back-off pulling image "registry.example.org/trainer:1": ErrImagePull: not found'
    waiting = {"reason": "ImagePullBackOff", "message": said}
    state = {"name": "pytorch", "image": "", "imageID": "", "ready": False, "restartCount": 0}
    status = {"containerStatuses": [state | {"state": {"waiting": waiting}}]}
    team.api.patch(f"{team.pods}/{POD}/status", {"status": status})


def quota_is_used_up(team: Team) -> None:
    metadata, hard = {"name": "team-quota", "namespace": team.namespace}, {"requests.nvidia.com/gpu": "2"}
    team.api.create({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": hard}})
    team.submit(SMALL)


def no_node_fits(team: Team) -> None:
    team.submit(SMALL)


def pod_is_evicted(team: Team) -> None:
    team.submit(SMALL)
    _bind(team)
    team.start(pods=1)
    metadata = {"name": POD, "namespace": team.namespace}
    team.api.request(
        "POST", f"{team.pods}/{POD}/eviction", {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    )


def hub_is_overloaded(team: Team) -> None:
    team.submit(SMALL)
    team.start(pods=1)
    said = ("model org/name: the Hub cannot be used now: Client error '429 Too Many Requests'; check the network and "
            "HF_ENDPOINT, set a token (HF_TOKEN) if it limits the rate, or use a folder as model")  # fmt: skip
    team.end(POD, Exit.SOURCE_UNAVAILABLE, said)


def time_is_up(team: Team) -> None:
    team.submit(SMALL | {"lifecycle.activeDeadlineSeconds": 1})
    _bind(team)  # time on a node counts; on a busy machine it is up before the operator sees the pod run


def webhook_is_down(team: Team) -> None:
    rule = {
        "apiGroups": ["kubeflow.org"],
        "apiVersions": ["*"],
        "operations": ["CREATE"],
        "resources": ["pytorchjobs"],
    }
    hook = {"name": "validator.pytorchjob.training-operator.kubeflow.org", "rules": [rule], "sideEffects": "None",
            "clientConfig": {"url": "https://127.0.0.1:1/none"}, "admissionReviewVersions": ["v1"],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": team.namespace}}}  # fmt: skip
    kind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
    team.api.create(kind | {"metadata": {"name": team.namespace}, "webhooks": [hook]})
    team.submit(SMALL)


def _bind(team: Team) -> None:
    team.api.create(Node(team.namespace).manifest())
    for pod in team.until_run("sample-1", pods=1):
        bind_pod(team.api, team.namespace, pod["metadata"]["name"], team.namespace)


@dataclass(frozen=True)
class Unlucky:
    """What happens to a job, the condition that says so, and the part of it that helps."""

    happens: Callable[[Team], None]
    kind: str
    reason: str
    remedy: str


JOBS = {
    "data that is refused": Unlucky(
        data_is_refused, "Failed", "DataRefused", "Correct the lines that the message names, or set data.on_bad_row"),
    "an image that is not there": Unlucky(
        image_is_not_there, "PodsReady", "ImagePull", "Check pods.image, and pods.imagePullSecrets"),
    "a quota that is used up": Unlucky(
        quota_is_used_up, "PodsReady", "QuotaExceeded", "Wait for other pods to end, request less, or have the"),
    "no node that fits": Unlucky(
        no_node_fits, "PodsReady", "Unschedulable", "Free or add nodes that fit, request less, or tolerate"),
    "a pod that is evicted": Unlucky(
        pod_is_evicted, "Training", "Restarting", "The next run starts automatically and costs none of"),
    "a Hub that is overloaded": Unlucky(
        hub_is_overloaded, "Training", "Restarting", "Wait, or check the network and HF_ENDPOINT; a token raises"),
    "time that is up": Unlucky(
        time_is_up, "FailureTarget", "DeadlineExceeded", "Set a longer lifecycle.activeDeadlineSeconds"),
    "a webhook that is down": Unlucky(
        webhook_is_down, "PodsReady", "CreateRefused", "The operator tries again automatically; ask an"),
}  # fmt: skip


@pytest.fixture
def unlucky(request: pytest.FixtureRequest) -> Unlucky:
    found: Unlucky = JOBS[request.param]
    return found


@pytest.fixture
def owner(unlucky: Unlucky, request: pytest.FixtureRequest) -> Team:
    """Where the job runs: beside a scheduler if that is what it needs."""
    if unlucky.happens is not no_node_fits:
        found: Team = request.getfixturevalue("team")
        return found
    scheduling: ControlPlane = request.getfixturevalue("scheduling")
    return Team(scheduling.cluster.api, scheduling.cluster.namespace())


@pytest.mark.parametrize("unlucky", JOBS, indirect=True)
def test_an_unlucky_job_says_in_its_status_and_in_an_event_what_to_do(owner: Team, unlucky: Unlucky) -> None:
    try:
        unlucky.happens(owner)
        status = owner.until(lambda s: condition(s, unlucky.kind)[1] == unlucky.reason)
    finally:
        _clean(owner)
    event = _event(owner, unlucky.reason)
    print(f"{event['type']:<8} {event['reason']:<17} finetunejob/sample  {event['message']}")
    print(f"  {unlucky.kind}: {message(status, unlucky.kind)}")
    assert unlucky.remedy in message(status, unlucky.kind)
    assert unlucky.remedy in event["message"]
    assert event["type"] == ("Normal" if unlucky.reason == "Restarting" else "Warning")


def _event(team: Team, reason: str) -> Json:
    path = f"/api/v1/namespaces/{team.namespace}/events"
    query = {"fieldSelector": f"involvedObject.kind=FinetuneJob,reason={reason}"}
    return wait_for_all(team.api, path, len, timeout_s=team.patience_s, **query)[0]


def _clean(team: Team) -> None:
    """What belongs to no namespace."""
    for path in (f"/api/v1/nodes/{team.namespace}", f"{HOOKS}/{team.namespace}"):
        if team.api.find(path):
            team.api.delete(path)
