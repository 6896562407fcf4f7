"""A tenant who writes whatever the API server takes, with rights on pods, PyTorchJobs, Events and claims alone.

No controller runs beside it: nothing collects what names an owner that does not exist.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.figures import cpu_seconds, resident_mib
from builders import Json, resource
from chart.helm import find, render
from cli_remote.rights import person
from finetune_api.codegen.crd import crd
from finetune_api.runtime.exits import Exit
from finetune_kube.nesting import allow_any_depth
from finetune_operator.cluster import PAGE
from operating.process import OperatorProcess
from operating.team import SMALL, Team, condition, report
from testbed.api import Api, ApiError, collection_of, path_of
from testbed.control_plane import ControlPlane
from testbed.training_operator import pytorchjob_crd
from testbed.watch import wait_for, wait_for_all

RIGHTS: list[Json] = [
    {"apiGroups": [""], "verbs": ["*"],
     "resources": ["pods", "pods/status", "events", "persistentvolumeclaims"]},
    {"apiGroups": ["kubeflow.org"], "verbs": ["*"], "resources": ["pytorchjobs", "pytorchjobs/status"]},
]  # fmt: skip
LARGE = 1_300_000
"""Bytes of the largest statuses: with the rest of the object just below the server's limit of 1.5 MiB."""
ANNOTATIONS = 250_000
"""Bytes of the largest annotations, just below the server's limit of 256 KiB."""
LISTS = 'finetune_operator_api_requests_total{code="200",resource="pods",verb="list"}'
DEEP = 9_000
"""Levels of the deepest objects; the server takes 10,000."""
LIMITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


@dataclass(frozen=True)
class Target:
    """What the tenant knows of somebody's job."""

    job: str
    uid: str
    run: str
    """UID of its run."""


def client(plane: ControlPlane, namespace: str) -> Api:
    """The tenant's own client."""
    user = json.loads(person(plane, namespace, RIGHTS).read_text())["users"][0]["user"]
    return Api(plane.cluster.api.url, token=user["token"], ca=plane.certificate)


@dataclass(frozen=True)
class Tenant:
    """Objects number after number: the same seed makes the same ones."""

    api: Api
    namespace: str
    targets: tuple[Target, ...]

    def flood(self, first: int, last: int) -> int:
        """Write the objects of these numbers; how many the server took."""
        with ThreadPoolExecutor(4) as pool:
            return sum(pool.map(self._write, range(first, last)))

    def _write(self, number: int) -> bool:
        draw = random.Random(number)
        manifest = (self._pod, self._run, self._event, self._claim)[number % 4](number, draw)
        status = manifest.pop("status", None)
        try:
            self.api.create(manifest)
            if status:
                self.api.patch(f"{path_of(manifest)}/status", {"status": status})
        except ApiError as error:
            if error.status not in (400, 409, 422):
                raise
            return False
        return True

    def _metadata(self, name: str, draw: random.Random) -> Json:
        target = draw.choice(self.targets)
        uid, run = draw.choice((target.uid, "x", "")), draw.choice(("x", "99", "1", "", "9" * 63, "-1"))
        labels = {"finetune.dev/job": target.job, "finetune.dev/job-uid": uid, "finetune.dev/run": run,
                  "training.kubeflow.org/replica-index": draw.choice(("0", "x", "9" * 40))}  # fmt: skip
        owners = draw.choice((
            [], [_owner("kubeflow.org/v1", "PyTorchJob", f"{target.job}-1", target.run)],
            [_owner("finetune.dev/v1alpha1", "FinetuneJob", target.job, target.uid)],
            [_owner("a/b", "Any", f"o{n}", f"u{n}", control=False) for n in range(500)],
        ))  # fmt: skip
        text = "x" * ANNOTATIONS if draw.random() < 0.1 else "["
        return {"name": name, "namespace": self.namespace, "labels": labels, "ownerReferences": owners,
                "annotations": {"finetune.dev/run-config": text}}  # fmt: skip

    def _pod(self, number: int, draw: random.Random) -> Json:
        name = draw.choice((f"pod-{number}", f"{self.targets[0].job}-{number}-worker-0"))
        message = draw.choice((report(Exit.OK, "mine").line(), '{"record":"report"' + "[" * 5000, "m" * _size(draw)))
        ended = {"exitCode": draw.choice((0, 1, 2**31 - 1)), "message": message}
        container = {"name": "pytorch", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
        status = {
            "phase": draw.choice(("Succeeded", "Failed", "Pending")),
            "reason": "r" * _size(draw),
            "conditions": [{"type": f"example.org/c{n}", "status": "True"} for n in range(_size(draw) // 500)],
            "containerStatuses": [container | {"state": {"terminated": ended}}],
        }
        spec = {"containers": [{"name": "pytorch", "image": "x"}]}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": self._metadata(name, draw), "spec": spec,
                "status": status}  # fmt: skip

    def _run(self, number: int, draw: random.Random) -> Json:
        name = draw.choice((f"run-{number}", f"{self.targets[0].job}-{number}"))
        spec: Json = draw.choice(
            ({"pytorchReplicaSpecs": {}}, {"pytorchReplicaSpecs": {}, "runPolicy": {"suspend": True}})
        )
        conditions = [{"type": f"c{n}", "status": "True", "message": "m"} for n in range(_size(draw) // 500)]
        return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": self._metadata(name, draw),
                "spec": spec, "status": {"conditions": conditions, "replicaStatuses": {}}}  # fmt: skip

    def _event(self, number: int, draw: random.Random) -> Json:
        target = draw.choice(self.targets)
        about = draw.choice((
            {"kind": "PyTorchJob"}, {"kind": "PyTorchJob", "name": f"{target.job}-1", "uid": target.run},
            {"kind": "PyTorchJob", "name": f"no-{number}", "uid": "u"}, {"name": "-", "uid": "-"},
        ))  # fmt: skip
        metadata = {"name": f"event-{number}", "namespace": self.namespace}
        return {"apiVersion": "v1", "kind": "Event", "metadata": metadata, "reason": "FailedCreatePod",
                "source": draw.choice(({}, {"component": "pytorchjob-controller"})), "message": "m" * _size(draw),
                "involvedObject": about | {"namespace": self.namespace}}  # fmt: skip

    def _claim(self, number: int, draw: random.Random) -> Json:
        text = draw.choice(("[" * ANNOTATIONS, "{}", "null", '{"result": NaN}'))
        metadata = {"name": f"claim-{number}", "namespace": self.namespace,
                    "annotations": {"result.finetune.dev/0": text}}  # fmt: skip
        spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def write_deep(api: Api, namespace: str) -> None:
    """A job and a pod that are nested almost as deep as the server takes them."""
    allow_any_depth()  # the answers are as deep
    metadata = {"name": "deep", "namespace": namespace}
    deep_job = resource(SMALL | {"compute.nodes": 1, "suspend": True, "tags": {"x": "deep"}}, name="deep")
    deep_job["metadata"] |= metadata
    fields = {"manager": "x", "operation": "Apply", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
              "fieldsType": "FieldsV1", "fieldsV1": "deep"}  # fmt: skip
    labels = {"finetune.dev/job-uid": "x"}
    deep_pod = {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "c", "image": "x"}]},
                "metadata": metadata | {"labels": labels, "managedFields": [fields]}}  # fmt: skip
    for manifest, start, end in ((deep_job, "[", "]"), (deep_pod, '{"f:a":', "}")):
        value = start * DEEP + ("{}" if end == "}" else "") + end * DEEP
        text = json.dumps(manifest).replace('"x": "deep"', f'"x": {value}')
        text = text.replace('"fieldsV1": "deep"', f'"fieldsV1": {value}')
        api.request("POST", collection_of(manifest), text.encode())


def _owner(version: str, kind: str, name: str, uid: str, *, control: bool = True) -> Json:
    return {"apiVersion": version, "kind": kind, "name": name, "uid": uid or "u", "controller": control}


def _size(draw: random.Random) -> int:
    """Mostly small, sometimes as large as the server takes."""
    return draw.choices((10, 5_000, 100_000, LARGE), (90, 6, 3, 1))[0]


def peak_mib(pid: int) -> float:
    """The most memory that a process has had resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def chart_limit_mib() -> float:
    """Memory that the chart allows the operator."""
    text = find(render(), "Deployment")["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
    return float(text[:-2]) * LIMITS[text[-2:]] / 2**20


@dataclass
class Flood:
    """An operator, a tenant who floods it, and healthy jobs beside that."""

    operator: OperatorProcess
    tenant: Tenant
    neighbours: Neighbours
    taken: int = 0

    def add(self, first: int, last: int) -> Delays:
        """Objects of these numbers; how healthy jobs fared meanwhile."""
        delays, taken = self.neighbours.during(partial(self.tenant.flood, first, last))
        self.taken += taken
        return delays

    def settle(self) -> None:
        """Until everything was listed once more."""
        lists = self._metric(LISTS)
        while self._metric(LISTS) < lists + 2 * (self.taken // 4 // PAGE + 1):
            self.neighbours.measure(1)

    def check(self) -> None:
        """The same process serves every healthy job, within the memory that the chart allows."""
        assert peak_mib(self.operator.pid) < chart_limit_mib()
        errors = [line["message"] for line in self.operator.lines() if line["level"] == "error"]
        assert [text for text in errors if "will retry" not in text] == [], "kopf's own repetition harms nobody"
        team = self.neighbours.team
        served = [condition(job["status"], "Ready")[1] for job in team.api.items(team.jobs)]
        assert served == ["NotFinished"] * self.neighbours.made
        assert self._metric("finetune_operator_malformed_objects_total") > 0

    def __str__(self) -> str:
        pid = self.operator.pid
        return (f"{self.taken} malformed objects; resident {resident_mib(pid):.0f} MiB, peak {peak_mib(pid):.0f} MiB "
                f"of {chart_limit_mib():.0f} MiB, CPU {cpu_seconds([pid]):.0f} s")  # fmt: skip

    def _metric(self, name: str) -> int:
        lines = self.operator.answer("metrics")[1].splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith(name))


@contextmanager
def flooded(folder: Path) -> Iterator[Flood]:
    """A control plane of its own, with no flood yet."""
    with (
        ControlPlane(folder, crds=[pytorchjob_crd(), crd()]) as plane,
        OperatorProcess(plane.cluster.kubeconfig, folder, {"RESYNC_SECONDS": "8"}) as operator,
    ):
        theirs, far, mine = (Team(plane.cluster.api, plane.cluster.namespace(), patience_s=60) for _ in range(3))
        targets = (target(theirs, "victim"), target(far, "far"))
        with closing(client(plane, theirs.namespace)) as api:
            yield Flood(operator, Tenant(api, theirs.namespace, targets), Neighbours(mine))


def target(team: Team, name: str) -> Target:
    uid = team.submit(SMALL, name=name)["metadata"]["uid"]
    [run] = wait_for_all(team.api, team.runs, lambda found: len(found) == 1)
    return Target(name, uid, run["metadata"]["uid"])


class Delays(NamedTuple):
    """From the creation of a job to its PyTorchJob."""

    jobs: int
    slowest: float
    """Of so few, the 99th percentile."""

    def __str__(self) -> str:
        return f"slowest of {self.jobs} jobs {self.slowest:.2f} s"


@dataclass
class Neighbours:
    """Healthy jobs in a namespace of their own, one after the other."""

    team: Team
    made: int = 0

    def measure(self, number: int) -> Delays:
        return Delays(number, max(seconds(self._one) for _ in range(number)))

    def during(self, act: Callable[[], int]) -> tuple[Delays, int]:
        """About one job a second while something else goes on, and what that came to."""
        taken: list[float] = []
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(act)
            while wait([other], timeout=1).not_done:
                taken.append(seconds(self._one))
        return Delays(len(taken), max(taken)), other.result()

    def _one(self) -> None:
        self.made += 1
        name = f"job-{self.made}"
        self.team.submit(SMALL, name=name)
        wait_for(self.team.api, f"{self.team.runs}/{name}-1", lambda found: found is not None)


def seconds(act: Callable[[], object]) -> float:
    begin = time.monotonic()
    act()
    return time.monotonic() - begin
