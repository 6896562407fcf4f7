"""Kinds of GPUs: what a pod requests to get one, and which labels of nodes say that they have it.

A new kind is one more entry. Labels of clouds are for nodes without GPU feature discovery, as GKE makes them, and for
nodes that an autoscaler has yet to make.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

PRODUCT_LABEL = "nvidia.com/gpu.product"
"""Of NVIDIA's GPU feature discovery."""
GPU_TAINT = "nvidia.com/gpu"
"""Taint that keeps others off nodes with NVIDIA's GPUs, whatever parts of these a pod requests."""
_GKE = "cloud.google.com/gke-accelerator"
_KARPENTER, _EKS_AUTO = "karpenter.k8s.aws/instance-gpu-name", "eks.amazonaws.com/instance-gpu-name"
_PARTS_OF_GPUS = {
    _GKE: ("cloud.google.com/gke-gpu-partition-size", "cloud.google.com/gke-gpu-sharing-strategy"),
}
"""Of a label that says which GPU it is: labels of nodes that have parts of them only (MIG, time-sharing, MPS)."""
_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_AS_LISTED = "`kubectl get nodes --show-labels` shows how they are written."
_KEY = rf"([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_NAME}"


@dataclass(frozen=True)
class Accelerator:
    """What pods need to get one kind of GPU."""

    products: tuple[str, ...]
    """Values of the node label `nvidia.com/gpu.product` (GPU feature discovery) that are this kind."""
    memory_gib: int
    resource: str = "nvidia.com/gpu"
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Values of other labels that are this kind, on nodes without that one."""
    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    @property
    def defect(self) -> str:
        """Why no pod could be made of an administrator's description; empty if pods could be."""
        if self.memory_gib < 1:
            return f"memory_gib: {self.memory_gib} is too little; say what one GPU has."
        if not re.fullmatch(_KEY, self.resource):
            return f"resource: {self.resource!r} is no name of a resource, such as nvidia.com/gpu."
        if PRODUCT_LABEL in self.labels:
            return f"labels: say the values of {PRODUCT_LABEL} in products."
        for key, values in {"products": self.products, **self.labels}.items():
            if key != "products" and not (re.fullmatch(_KEY, key) and values):
                return f"labels: {key!r} is no label with values; {_AS_LISTED}"
            if wrong := [value for value in values if not re.fullmatch(_NAME, value)]:
                return f"{key}: {wrong[0]!r} is no value of a label; {_AS_LISTED}"
        return ""

    @property
    def taint(self) -> str:
        """Of nodes that are kept for what has these GPUs."""
        return GPU_TAINT if self.resource.startswith("nvidia.com/") else self.resource

    def is_on(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels has this kind."""
        if PRODUCT_LABEL in labels and self.products:
            return labels[PRODUCT_LABEL] in self.products
        return any(
            labels.get(key) in values and labels.keys().isdisjoint(_PARTS_OF_GPUS.get(key, ()))
            for key, values in self.labels.items()
        )

    def expressions(self) -> Iterator[list[dict[str, Any]]]:
        """The same for the scheduler: alternatives, each a list of requirements of Kubernetes' node affinity."""
        if self.products:
            yield [_in(PRODUCT_LABEL, self.products)]
        for key, values in self.labels.items():
            absent = ((PRODUCT_LABEL,) if self.products else ()) + _PARTS_OF_GPUS.get(key, ())
            yield [_in(key, values), *({"key": each, "operator": "DoesNotExist"} for each in absent)]

    @property
    def sentence(self) -> str:
        """What nodes are found by; empty if any node with the resource will do."""
        given = {PRODUCT_LABEL: self.products} if self.products else {}
        found = [f"{key} ({', '.join(values)})" for key, values in {**given, **self.labels}.items()]
        return f"Nodes are found by the label {' or '.join(found)}." if found else ""


def _in(key: str, values: tuple[str, ...]) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": list(values)}


def _cloud(gke: tuple[str, ...] = (), aws: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    return {key: values for key, values in ((_GKE, gke), (_KARPENTER, aws), (_EKS_AUTO, aws)) if values}


_A100_40 = ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB")
_A100_80 = ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe")

ACCELERATORS: Mapping[str, Accelerator] = {
    "A10G": Accelerator(("NVIDIA-A10G",), 24, labels=_cloud(aws=("a10g",))),
    "A100": Accelerator(
        (*_A100_80, *_A100_40), 40, labels=_cloud(("nvidia-tesla-a100", "nvidia-a100-80gb"), ("a100",))),
    "A100-40GB": Accelerator(_A100_40, 40, labels=_cloud(("nvidia-tesla-a100",))),
    "A100-80GB": Accelerator(_A100_80, 80, labels=_cloud(("nvidia-a100-80gb",))),
    "B200": Accelerator(("NVIDIA-B200",), 180, labels=_cloud(("nvidia-b200",), ("b200",))),
    "GB200": Accelerator(("NVIDIA-GB200",), 186, labels=_cloud(("nvidia-gb200",))),
    "GB300": Accelerator(("NVIDIA-GB300",), 279, labels=_cloud(("nvidia-gb300",))),
    "H100": Accelerator(
        ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe", "NVIDIA-H100-NVL"), 80,
        labels=_cloud(("nvidia-h100-80gb", "nvidia-h100-mega-80gb"), ("h100",))),
    "H200": Accelerator(
        ("NVIDIA-H200", "NVIDIA-H200-NVL"), 141, labels=_cloud(("nvidia-h200-141gb",), ("h200",))),
    "L4": Accelerator(("NVIDIA-L4",), 24, labels=_cloud(("nvidia-l4",), ("l4",))),
    "L40S": Accelerator(("NVIDIA-L40S",), 48, labels=_cloud(aws=("l40s",))),
}  # fmt: skip
"""Memory is that of the smallest product of the kind. GKE's values are from its pages on GPU node pools, those of
AWS from Karpenter's and EKS Auto Mode's of instance types, where both A100 have one name."""
