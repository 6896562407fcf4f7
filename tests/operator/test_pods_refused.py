"""What keeps pods from existing or from running stands in PodsReady, with a remedy; said by the real servers."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from builders import Json
from operating.team import SMALL, Team, condition, message
from testbed.control_plane import ControlPlane
from testbed.watch import wait_for_all


def policy(team: Team, kind: str, spec: Json) -> None:
    """An object of the namespace's administrator."""
    team.api.create({
        "apiVersion": "v1", "kind": kind, "metadata": {"name": "rule", "namespace": team.namespace}, "spec": spec,
    })  # fmt: skip


class Refused(NamedTuple):
    """A rule of the namespace, a job that breaks it, and what the job's owner is told."""

    kind: str
    rule: Json
    job: Json
    reason: str
    words: str
    remedy: str


REFUSALS = {
    "a quota that has no room": Refused(
        "ResourceQuota", {"hard": {"requests.nvidia.com/gpu": "4"}}, {},
        "QuotaExceeded", "exceeded quota: rule", "request less"),
    "a quota that counts limits": Refused(
        "ResourceQuota", {"hard": {"limits.cpu": "4"}}, {},
        "QuotaNeedsLimits", "must specify limits.cpu", "give the namespace a LimitRange"),
    "a limit range": Refused(
        "LimitRange", {"limits": [{"type": "Container", "max": {"memory": "1Gi"}}]}, {"pods.memory": "2Gi"},
        "LimitRange", "maximum memory usage per Container is 1Gi", "within the namespace's LimitRange"),
    "a priority class that is not there": Refused(
        "", {}, {"pods.priorityClassName": "gold"},
        "NoPriorityClass", "no PriorityClass with name gold", "change pods.priorityClassName"),
}  # fmt: skip


@pytest.mark.parametrize("refused", REFUSALS.values(), ids=list(REFUSALS))
def test_pods_that_are_refused_say_why(team: Team, refused: Refused) -> None:
    if refused.kind:
        policy(team, refused.kind, refused.rule)
    team.submit(refused.job)
    status = team.until(lambda s: condition(s, "PodsReady") == ("False", refused.reason))
    assert refused.words in message(status, "PodsReady")
    assert refused.remedy in message(status, "PodsReady")
    team.until_event(refused.reason)


def test_pods_that_the_namespaces_security_level_forbids_say_so(scheduling: ControlPlane) -> None:
    """Ours pass the strictest level, so one is spoilt before the Training Operator sees it."""
    api = scheduling.cluster.api
    team = Team(api, scheduling.cluster.namespace(labels={"pod-security.kubernetes.io/enforce": "restricted"}))
    backend = scheduling.processes["training-operator"]
    backend.stop()
    team.submit(SMALL)
    wait_for_all(api, team.runs, len)
    worker = {"template": {"spec": {"hostNetwork": True}}}
    api.patch(f"{team.runs}/sample-1", {"spec": {"pytorchReplicaSpecs": {"Worker": worker}}})
    backend.start()
    backend.wait_ready()
    status = team.until(lambda s: condition(s, "PodsReady") == ("False", "PodSecurity"))
    said = message(status, "PodsReady")
    assert 'violates PodSecurity "restricted:latest": host namespaces (hostNetwork=true)' in said
    assert "use a namespace that allows them" in said


def test_an_image_that_cannot_be_pulled_is_named(team: Team) -> None:
    """The test plays the kubelet, in its own words; a real one says them in tests/e2e."""
    team.submit()
    team.until_run("sample-1")
    said = 'Back-off pulling image "no.such/trainer:1": ErrImagePull: not found'
    state = {"name": "pytorch", "image": "", "imageID": "", "ready": False, "restartCount": 0,
             "state": {"waiting": {"reason": "ImagePullBackOff", "message": said}}}  # fmt: skip
    team.api.patch(f"{team.pods}/sample-1-worker-1/status", {"status": {"containerStatuses": [state]}})
    status = team.until(lambda s: condition(s, "PodsReady") == ("False", "ImagePull"))
    assert f"Pod sample-1-worker-1 is waiting: ImagePullBackOff: {said}" in message(status, "PodsReady")
    assert "Check pods.image" in message(status, "PodsReady")
