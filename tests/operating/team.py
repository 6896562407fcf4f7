"""A job's life as a test plays it: there is no kubelet, pods run and end as the test says."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from builders import Json, resource
from finetune_api.resource import names
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import Cause, FinalReport
from finetune_plan.backends import DEFAULT
from finetune_plan.backends.protocol import Backend, api_version
from testbed.api import Api
from testbed.pods import end_pod, run_pod
from testbed.watch import PATIENCE_S, wait_for, wait_for_all

SMALL: Json = {"compute.nodes": 1, "job.data": "configmap://rows/train.jsonl", "output": {"ephemeral": True}}
"""Changes of a job that then fits on one node and needs no claim."""


@dataclass(frozen=True)
class Team:
    """A namespace, seen with the eyes of the people who run jobs in it."""

    api: Api
    namespace: str
    patience_s: float = PATIENCE_S
    """How long one wait may take where nothing else is said."""
    backend: Backend = DEFAULT

    @property
    def jobs(self) -> str:
        return f"/apis/finetune.dev/v1alpha1/namespaces/{self.namespace}/finetunejobs"

    @property
    def runs(self) -> str:
        return f"/apis/{api_version(self.backend)}/namespaces/{self.namespace}/{self.backend.plural}"

    @property
    def pods(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods"

    def submit(self, changes: Json | None = None, name: str = "sample") -> Json:
        body = resource({"compute.nodes": 2, "network.profile": "tcp", **(changes or {})}, name=name)
        body["metadata"]["namespace"] = self.namespace
        return self.api.create(body)

    def claim(self, name: str, mode: str = "ReadWriteMany") -> Json:
        """A PersistentVolumeClaim, which nothing binds."""
        spec = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}
        metadata = {"name": name, "namespace": self.namespace}
        return self.api.create(
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
        )

    def edit(self, changes: Json, name: str = "sample") -> Json:
        return self.api.patch(f"{self.jobs}/{name}", {"spec": changes})

    def status(self, name: str = "sample") -> Json:
        found: Json = self.api.get(f"{self.jobs}/{name}").get("status") or {}
        return found

    def until(self, accept: Callable[[Json], Any], name: str = "sample", timeout_s: float | None = None) -> Json:
        """The first status that is accepted."""
        found = wait_for(
            self.api,
            f"{self.jobs}/{name}",
            lambda job: job and accept(job.get("status") or {}),
            timeout_s=timeout_s or self.patience_s,
        )
        assert found is not None
        status: Json = found["status"]
        return status

    def until_phase(self, phase: str, name: str = "sample") -> Json:
        return self.until(lambda status: status.get("phase") == phase, name)

    def until_run(self, name: str, pods: int = 2, timeout_s: float | None = None) -> list[Json]:
        """The pods of a run, such as sample-1, once all are there, by node rank."""
        job, _, number = name.rpartition("-")
        found = wait_for_all(
            self.api,
            self.pods,
            lambda found: len(found) == pods,
            timeout_s=timeout_s or self.patience_s,
            labelSelector=f"{names.JOB_LABEL}={job},{names.RUN_LABEL}={number}",
        )
        return sorted(found, key=self.backend.node_rank)

    def until_gone(self, path: str) -> None:
        """Until there is nothing any more at a collection."""
        wait_for_all(self.api, path, lambda found: not found, timeout_s=self.patience_s)

    def start(self, run: str = "sample-1", name: str = "sample", pods: int = 2) -> None:
        """All pods run."""
        for pod in self.until_run(run, pods):
            run_pod(self.api, self.namespace, pod["metadata"]["name"])
        self.until(lambda status: condition(status, "PodsReady")[0] == "True", name)

    def end(self, pod: str, code: Exit = Exit.OK, message: str = "why") -> None:
        """A pod ends with the trainer's report in its termination message."""
        end_pod(self.api, self.namespace, pod, exit_code=int(code), message=report(code, message).line())

    def run_names(self) -> list[str]:
        return [run["metadata"]["name"] for run in self.api.items(self.runs)]

    def until_event(self, reason: str) -> None:
        """Until an Event about a job has that reason."""
        path = f"/api/v1/namespaces/{self.namespace}/events"
        wait_for_all(self.api, path, lambda _: reason in self.events(), timeout_s=self.patience_s)

    def events(self) -> list[str]:
        """Reasons of the Events about jobs."""
        found = self.api.items(f"/api/v1/namespaces/{self.namespace}/events")
        return [e["reason"] for e in found if e["involvedObject"]["kind"] == "FinetuneJob"]


def condition(status: Json, kind: str) -> tuple[str, str]:
    """Status and reason of a condition; of one that is not there: empty words."""
    return next(
        (c["status"], c["reason"]) for c in [*status.get("conditions", []), _ABSENT] if c["type"] in (kind, "")
    )


_ABSENT = {"type": "", "status": "", "reason": ""}


def message(status: Json, kind: str) -> str:
    found: str = next(c["message"] for c in status["conditions"] if c["type"] == kind)
    return found


def essence(status: Json) -> Json:
    """What a status says, without the times at which it said so and the pods that it saw."""
    words = {c["type"]: (c["status"], c["reason"], c["message"]) for c in status.get("conditions", [])}
    times = ("conditions", "startTime", "completionTime", "podsDigest", "active", "retry")
    retry = {k: v for k, v in status.get("retry", {}).items() if k != "nextTime"}
    return {k: v for k, v in status.items() if k not in times} | {"conditions": words, "retry": retry}


def report(code: Exit, sentence: str) -> FinalReport:
    cause = Cause(rank=0, node=0, time=time.time(), error=sentence) if code else None
    return FinalReport(
        time=time.time(), exit_code=int(code), reason="Reason", message=sentence, step=7, digest="sha256:1",
        result="/mnt/claims/models/out/result", metrics={"val.loss": 1.5}, cause=cause,
    )  # fmt: skip
