"""Runs as Indexed Jobs: a second backend, so that the protocol is more than a description of the first.

For tests only. On a cluster, rank 0's name would lead somewhere only beside a headless Service called like the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_api.resource import names
from finetune_api.runtime import protocol
from finetune_api.validation.predicates import find
from finetune_plan.backends import parts
from finetune_plan.backends.protocol import Right, RunRef
from finetune_plan.model import ObservedRun
from finetune_plan.pods import TrainerContainer, pod_template
from finetune_plan.workload import Workload

RANK_LABEL = "batch.kubernetes.io/job-completion-index"


class IndexedJobs:
    """The backend of batch/v1 Jobs with an index for each pod."""

    kind = "Job"
    group = "batch"
    version = "v1"
    plural = "jobs"
    controller = "Job controller"
    install = "It is part of Kubernetes"
    inspect = "kubectl get pods -n kube-system -l component=kube-controller-manager"
    container = "trainer"
    suspend_key = "spec.suspend"
    refusal_reason = "FailedCreate"
    refusal_component = "job-controller"
    rights: tuple[Right, ...] = (Right("batch", "jobs", ("get", "list", "watch", "create", "delete")),)

    def render(
        self, work: Workload, namespace: str | None = None, owner: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        env = [
            {"name": protocol.NODES_ENV, "value": str(work.nodes)},
            {"name": "PET_NPROC_PER_NODE", "value": str(work.processes_per_node)},
            *parts.rendezvous(self.host(work.name, 0), RANK_LABEL),
        ]
        template = pod_template(work, TrainerContainer(self.container, "rendezvous", env))
        template["spec"] |= {"restartPolicy": "Never", "subdomain": work.name}
        gang = {"completionMode": "Indexed", "completions": work.nodes, "parallelism": work.nodes, "backoffLimit": 0}
        return {
            "apiVersion": "batch/v1",
            "kind": self.kind,
            "metadata": parts.metadata(work, namespace, owner),
            "spec": gang | parts.suspend(work) | {"template": template},
        }

    def observe(self, raw: Mapping[str, Any]) -> ObservedRun:
        return parts.observed_run(raw, self.suspend_key, {"Complete", "Failed"}, reconciled=self.is_reconciled(raw))

    def is_reconciled(self, raw: Mapping[str, Any]) -> bool:
        return bool(find(raw, "status.startTime"))

    def node_rank(self, pod: Mapping[str, Any]) -> int:
        return names.label_number(pod["metadata"], RANK_LABEL)

    def host(self, run: str, node_rank: int) -> str:
        return f"{run}-{node_rank}.{run}"

    def names_pod(self, run: str, node_rank: int, name: str) -> bool:
        head, _, suffix = name.rpartition("-")
        return head == f"{run}-{node_rank}" and suffix.isalnum()

    def refused_run(self, event: Mapping[str, Any]) -> RunRef | None:
        return parts.refused_run(event, self)
