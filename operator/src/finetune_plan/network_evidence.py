"""Which network nodes are on, by their labels and allocatable resources. Pure; somebody else reads the nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .network_profile import Evidence, NetworkProfile

PRODUCT_LABEL = "nvidia.com/gpu.product"


@dataclass(frozen=True)
class NodeClass:
    """Nodes that are alike."""

    labels: Mapping[str, str] = field(default_factory=dict)
    resources: frozenset[str] = frozenset()
    """Names of what is allocatable."""


def best(profiles: Mapping[str, NetworkProfile], nodes: Sequence[NodeClass]) -> dict[str, Evidence]:
    """Name -> evidence, of the profiles whose evidence all these nodes have; of several, those that ask for most."""
    given = {name: profile.evidence for name, profile in profiles.items() if profile.evidence}
    found = {name: evidence for name, evidence in given.items() if all(_shows(node, evidence) for node in nodes)}
    most = max(map(_weight, found.values()), default=0)
    return {name: evidence for name, evidence in found.items() if _weight(evidence) == most}


def classes(profiles: Mapping[str, NetworkProfile], nodes: Iterable[NodeClass]) -> tuple[NodeClass, ...]:
    """Nodes without what no profile asks for, and of those that are alike then, one."""
    every = [profile.evidence for profile in profiles.values() if profile.evidence]
    keys = {PRODUCT_LABEL, *(key for each in every for key in each.labels)}
    names = frozenset(name for each in every for name in each.resources)
    reduced = [
        NodeClass({k: v for k, v in node.labels.items() if k in keys}, node.resources & names) for node in nodes
    ]
    return tuple({(frozenset(each.labels.items()), each.resources): each for each in reduced}.values())


def _shows(node: NodeClass, evidence: Evidence) -> bool:
    labelled = all(
        key in node.labels and (not values or node.labels[key] in values) for key, values in evidence.labels.items()
    )
    return labelled and set(evidence.resources) <= node.resources


def _weight(evidence: Evidence) -> int:
    return len(evidence.labels) + sum(map(bool, evidence.labels.values())) + len(evidence.resources)
