"""Which nodes have a kind of GPU: by GPU feature discovery, by the labels of clouds, or by the resource alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from builders import resource
from finetune_plan import pods
from finetune_plan.accelerators import ACCELERATORS, PRODUCT_LABEL, Accelerator
from finetune_plan.resolve import resolve, validate
from finetune_plan.settings import PlanSettings
from finetune_plan.workload import workload

GKE, KARPENTER = "cloud.google.com/gke-accelerator", "karpenter.k8s.aws/instance-gpu-name"
EKS = "eks.amazonaws.com/instance-gpu-name"
H100, _GKE = "NVIDIA-H100-80GB-HBM3", "cloud.google.com/gke-"
NODES: dict[str, tuple[str, dict[str, str], bool]] = {
    "a discovered product": ("H100", {PRODUCT_LABEL: H100}, True),
    "another one": ("H100", {PRODUCT_LABEL: "NVIDIA-H200"}, False),
    "one that is shared by time": ("H100", {PRODUCT_LABEL: f"{H100}-SHARED"}, False),
    "a shared one on GKE": ("H100", {PRODUCT_LABEL: f"{H100}-SHARED", GKE: "nvidia-h100-80gb"}, False),
    "GKE without discovery": ("H100", {GKE: "nvidia-h100-mega-80gb"}, True),
    "a part of a GPU on GKE": ("H100", {GKE: "nvidia-h100-80gb", f"{_GKE}gpu-partition-size": "1g.10gb"}, False),
    "a shared GPU on GKE": ("H100", {GKE: "nvidia-h100-80gb", f"{_GKE}gpu-sharing-strategy": "mps"}, False),
    "EKS Auto Mode": ("H100", {EKS: "h100"}, True),
    "another GPU on GKE": ("H100", {GKE: "nvidia-l4"}, False),
    "what Karpenter will make": ("L40S", {KARPENTER: "l40s"}, True),
    "nothing known": ("H100", {"node.kubernetes.io/instance-type": "p5.48xlarge"}, False),
    "either A100": ("A100", {KARPENTER: "a100"}, True),
    "of two A100 the one that Karpenter does not tell": ("A100-80GB", {KARPENTER: "a100"}, False),
    "the A100 of 80 GB": ("A100-80GB", {GKE: "nvidia-a100-80gb"}, True),
    "not that of 40 GB": ("A100-80GB", {GKE: "nvidia-tesla-a100"}, False),
}


def scheduled(terms: list[dict[str, Any]], labels: Mapping[str, str]) -> bool:
    """What the scheduler makes of node selector terms."""
    met = {
        "In": lambda e: labels.get(e["key"]) in e["values"],
        "DoesNotExist": lambda e: e["key"] not in labels,
    }
    return any(all(met[e["operator"]](e) for e in term["matchExpressions"]) for term in terms)


@pytest.mark.parametrize(("kind", "labels", "there"), NODES.values(), ids=NODES)
def test_a_node_has_a_kind_by_its_labels(kind: str, labels: dict[str, str], there: bool) -> None:
    assert ACCELERATORS[kind].is_on(labels) == there


@pytest.mark.parametrize("kind", ACCELERATORS)
def test_the_scheduler_is_told_the_same(kind: str) -> None:
    values: dict[str, set[str | None]] = {key: {None} for key in (PRODUCT_LABEL, GKE, KARPENTER, EKS)}
    for each in ACCELERATORS.values():
        for key, given in ({PRODUCT_LABEL: each.products} | dict(each.labels)).items():
            values[key] |= set(given)
    values[f"{_GKE}gpu-partition-size"], values[f"{_GKE}gpu-sharing-strategy"] = {None, "1g.5gb"}, {None, "mps"}
    terms = [{"matchExpressions": each} for each in ACCELERATORS[kind].expressions()]
    found = 0
    for chosen in product(*values.values()):
        labels = {key: value for key, value in zip(values, chosen, strict=True) if value is not None}
        there = ACCELERATORS[kind].is_on(labels)
        assert scheduled(terms, labels) == there, labels
        found += there
    assert found


def pod(kind: str, settings: PlanSettings, **changes: Any) -> dict[str, Any]:
    job = resource({"compute.gpu_type": kind, "compute.gpu_count": 1, **changes})
    work = replace(workload(resolve(job, settings), settings), avoided_nodes=("bad-1", "bad-2"))
    spec: dict[str, Any] = pods.pod_template(work, pods.TrainerContainer("trainer", "port"))["spec"]
    return spec


def test_every_alternative_keeps_off_avoided_nodes() -> None:
    affinity = pod("H100", PlanSettings())["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert len(terms) == 4
    assert all([field["values"] for field in term["matchFields"]] == [["bad-1"], ["bad-2"]] for term in terms)


def test_a_kind_without_labels_is_on_any_node_with_its_resource() -> None:
    settings = PlanSettings(accelerators={"ANY": Accelerator((), 24, "example.com/gpu")})
    job = resource({"compute.gpu_type": "any", "compute.gpu_count": 1})
    spec = pods.pod_template(workload(resolve(job, settings), settings), pods.TrainerContainer("trainer", "port"))
    assert "affinity" not in spec["spec"]
    assert settings.accelerators["ANY"].sentence == ""


@pytest.mark.parametrize(
    ("own", "keys"),
    [
        (None, ["nvidia.com/gpu"]),
        ([{"key": "team", "operator": "Exists"}], ["team", "nvidia.com/gpu"]),
        ([{"key": "nvidia.com/gpu", "operator": "Equal", "value": "mine"}], ["nvidia.com/gpu"]),
        ([{"operator": "Exists"}], [None]),
        ([{"operator": "Exists", "effect": "NoExecute"}], [None, "nvidia.com/gpu"]),
    ],
    ids=["no toleration", "another one", "its own", "of every taint", "of every taint that evicts"],
)
def test_pods_tolerate_the_taint_of_their_gpus(own: Any, keys: list[str | None]) -> None:
    found = pod("H100", PlanSettings(), **({"pods.tolerations": own} if own else {}))["tolerations"]
    assert [each.get("key") for each in found] == keys
    assert own is None or found[: len(own)] == own


def test_parts_of_gpus_are_behind_the_taint_of_whole_ones() -> None:
    settings = PlanSettings(accelerators={"SLICE": Accelerator((), 10, "nvidia.com/mig-1g.10gb")})
    assert [each["key"] for each in pod("SLICE", settings)["tolerations"]] == ["nvidia.com/gpu"]


def test_what_nodes_are_found_by_is_said_with_the_values() -> None:
    assert ACCELERATORS["L40S"].sentence == (
        "Nodes are found by the label nvidia.com/gpu.product (NVIDIA-L40S) or "
        "karpenter.k8s.aws/instance-gpu-name (l40s) or eks.amazonaws.com/instance-gpu-name (l40s)."
    )


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a label without values": ({"labels": {"foo": ()}}, "labels: 'foo' is no label with values;"),
    "a label that is none": ({"labels": {"not a key": ("a",)}}, "labels: 'not a key' is no label with values;"),
    "a value that no label has": ({"labels": {"foo": ("a b",)}}, "foo: 'a b' is no value of a label;"),
    "a product that no label has": (
        {"products": ("NVIDIA H100",)},
        "products: 'NVIDIA H100' is no value of a label;",
    ),
    "products among the labels": (
        {"labels": {PRODUCT_LABEL: ("A",)}},
        f"labels: say the values of {PRODUCT_LABEL} in",
    ),
    "no resource": ({"resource": ""}, "resource: '' is no name of a resource, such as nvidia.com/gpu."),
    "no memory": ({"memory_gib": 0}, "memory_gib: 0 is too little; say what one GPU has."),
}


@pytest.mark.parametrize(("changes", "said"), WRONG.values(), ids=WRONG)
def test_what_an_administrator_cannot_mean_is_named(changes: dict[str, Any], said: str) -> None:
    assert said in Accelerator(**{"products": (), "memory_gib": 8, **changes}).defect


@pytest.mark.parametrize("kind", ACCELERATORS)
def test_what_is_built_in_can_be_found(kind: str) -> None:
    assert ACCELERATORS[kind].defect == ""


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("H100-80GB", "Did you mean H100? Choose one of A100, "),
        ("h100-4x", "Did you mean H100? "),
        ("a100-80", "Did you mean A100-80GB? "),
        ("H10O", "Did you mean H100? "),
        ("X9000", "Choose one of A100, "),
    ],
)
def test_of_an_unknown_kind_the_one_that_is_meant_is_named(given: str, remedy: str) -> None:
    [problem] = validate(resource({"compute.gpu_type": given}), PlanSettings()).problems
    assert (problem.path, problem.reason) == ("spec.compute.gpu_type", "UnknownGpuType")
    assert problem.remedy.startswith(remedy)
