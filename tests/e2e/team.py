"""People who train on the cluster: their namespace, their volume, and what they type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders import Json
from testbed.cluster import Cluster
from testbed.watch import WaitError, states, wait_for, wait_for_all
from trainer.models import dataset, model_folder

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
TRAINER_USER = 1000
JOB_VERSION = "finetune.dev/v1alpha1"


@dataclass(frozen=True)
class Team:
    """`volume` is a folder of this machine, and in the cluster the claim `shared`."""

    cluster: Cluster
    namespace: str
    volume: Path

    @property
    def rows(self) -> Path:
        return self.volume / "train.jsonl"

    @property
    def model(self) -> Path:
        return self.volume / "tiny"

    def furnished(self) -> Team:
        """With a model on the volume, and rows in a ConfigMap. The volume is the trainer's user's own."""
        self.volume.mkdir(exist_ok=True)
        os.chown(self.volume, TRAINER_USER, TRAINER_USER)
        for path in (*model_folder(self.model).iterdir(), dataset(self.rows, 96)):
            path.chmod(0o644)  # weights are saved for their owner's eyes only
        self.kubectl("create", "configmap", "rows", f"--from-file={self.rows}")
        size, modes = {"storage": "1Gi"}, ["ReadWriteMany"]
        name = f"{self.namespace}-shared"
        claim = {"storageClassName": "", "accessModes": modes, "volumeName": name, "resources": {"requests": size}}
        volume = {
            "storageClassName": "",
            "accessModes": modes,
            "capacity": size,
            "hostPath": {"path": str(self.volume)},
        }
        self.apply("PersistentVolume", name, {"spec": volume}, version="v1")
        self.apply("PersistentVolumeClaim", "shared", {"spec": claim}, version="v1")
        return self

    def submit(self, name: str, **spec: Json) -> None:
        """Apply a FinetuneJob with kubectl."""
        self.apply("FinetuneJob", name, {"spec": spec}, version=JOB_VERSION)

    def run_here(self, name: str, spec: Json) -> Json:
        """The status of a job after `finetune run` on this machine; its output is on the volume."""
        file = self._written("FinetuneJob", name, {"spec": spec}, version=JOB_VERSION)
        command = [sys.executable, "-m", "finetune_cli", "run", str(file), "--model", str(self.model)]
        command += ["--dataset", str(self.rows), "--output", str(self.volume / name), "-o", "json"]
        # As many threads as in the pods: sums in another order differ in their last digits.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr
        status: Json = json.loads(done.stdout)
        return status

    def apply(self, kind: str, name: str, body: Json, *, version: str) -> None:
        self.kubectl("apply", "-f", str(self._written(kind, name, body, version=version)))

    def kubectl(self, *arguments: str) -> str:
        """kubectl in the namespace; it has to succeed."""
        done = self.cluster.kubectl("--namespace", self.namespace, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def statuses(self, name: str, timeout_s: float) -> Iterator[Json]:
        """What the status of a job says, now and after every change."""
        for found in states(self.cluster.api, self._jobs, timeout_s=timeout_s, fieldSelector=f"metadata.name={name}"):
            yield from (job.get("status") or {} for job in found)

    def until(self, name: str, accept: Callable[[Json], Any], timeout_s: float = 60) -> Json:
        """The first status that is accepted."""
        path = f"{self._jobs}/{name}"
        job = wait_for(
            self.cluster.api, path, lambda found: found and accept(found.get("status") or {}), timeout_s=timeout_s
        )
        assert job is not None
        status: Json = job["status"]
        return status

    def pods(self, count: int, timeout_s: float = 60) -> list[Json]:
        """The pods of the namespace, once there are so many."""
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        return wait_for_all(self.cluster.api, path, lambda found: len(found) == count, timeout_s=timeout_s)

    def _written(self, kind: str, name: str, body: Json, *, version: str) -> Path:
        file = self.cluster.folder / f"{self.namespace}-{kind}-{name}.json"
        file.write_text(json.dumps({"apiVersion": version, "kind": kind, "metadata": {"name": name}} | body))
        return file

    @property
    def _jobs(self) -> str:
        return f"/apis/finetune.dev/v1alpha1/namespaces/{self.namespace}/finetunejobs"


@contextmanager
def explained(cluster: Cluster, namespace: str) -> Iterator[None]:
    """Whatever is not seen in time, its error says what the pods of a namespace were doing instead."""
    try:
        yield
    except WaitError as error:
        asked = (("get", "pods,events"), ("logs", "--selector=", "--tail=20", "--all-pods=true"))
        for words in asked:
            done = cluster.kubectl("--namespace", namespace, *words)
            error.add_note(f"kubectl {' '.join(words)}:\n{done.stdout}{done.stderr}")
        raise
