"""Kinds of GPUs: what a pod requests to get one, and which labels of nodes say that they have it.

A new kind is one more entry. Labels of clouds are for nodes without GPU feature discovery, as GKE makes them, and for
nodes that an autoscaler has yet to make.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

PRODUCT_LABEL = "nvidia.com/gpu.product"
"""Of NVIDIA's GPU feature discovery."""
_GKE = "cloud.google.com/gke-accelerator"
_KARPENTER = "karpenter.k8s.aws/instance-gpu-name"


@dataclass(frozen=True)
class Accelerator:
    """What pods need to get one kind of GPU."""

    products: tuple[str, ...]
    """Values of the node label `nvidia.com/gpu.product` (GPU feature discovery) that are this kind."""
    memory_gib: int
    resource: str = "nvidia.com/gpu"
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Values of other labels that are this kind, on nodes without that one."""

    def is_on(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels has this kind."""
        if PRODUCT_LABEL in labels and self.products:
            return labels[PRODUCT_LABEL] in self.products
        return any(labels.get(key) in values for key, values in self.labels.items())

    def expressions(self) -> Iterator[list[dict[str, Any]]]:
        """The same for the scheduler: alternatives, each a list of requirements of Kubernetes' node affinity."""
        if self.products:
            yield [_in(PRODUCT_LABEL, self.products)]
        for key, values in self.labels.items():
            undiscovered = [{"key": PRODUCT_LABEL, "operator": "DoesNotExist"}] if self.products else []
            yield [_in(key, values), *undiscovered]

    @property
    def sentence(self) -> str:
        """What nodes are found by; empty if any node with the resource will do."""
        given = {PRODUCT_LABEL: self.products} if self.products else {}
        found = [f"{key} ({', '.join(values)})" for key, values in {**given, **self.labels}.items()]
        return f"Nodes are found by the label {' or '.join(found)}." if found else ""


def _in(key: str, values: tuple[str, ...]) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": list(values)}


def _cloud(gke: tuple[str, ...] = (), karpenter: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    return {key: values for key, values in ((_GKE, gke), (_KARPENTER, karpenter)) if values}


_A100_40 = ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB")
_A100_80 = ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe")

ACCELERATORS: Mapping[str, Accelerator] = {
    "A10G": Accelerator(("NVIDIA-A10G",), 24, labels=_cloud(karpenter=("a10g",))),
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
    "L40S": Accelerator(("NVIDIA-L40S",), 48, labels=_cloud(karpenter=("l40s",))),
}  # fmt: skip
"""Memory is that of the smallest product of the kind. GKE's values: its documentation of GPU node pools; Karpenter's:
its instance types, whose label does not tell the two A100 apart."""
