"""Which network nodes are on, by their labels and allocatable resources. Pure; somebody else reads the nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .network_profile import Evidence, NetworkProfile


@dataclass(frozen=True)
class NodeClass:
    """Nodes that are alike."""

    labels: Mapping[str, str] = field(default_factory=dict)
    resources: frozenset[str] = frozenset()
    """Names of what is allocatable."""
    count: int = 1


@dataclass(frozen=True)
class Nodes:
    """All nodes that pods can be bound to, as far as they could be read."""

    classes: tuple[NodeClass, ...] = ()
    error: str = ""
    """Why they could not be read; empty if they could."""


def fitting(profiles: Mapping[str, NetworkProfile], nodes: Sequence[NodeClass]) -> dict[str, Evidence]:
    """Name -> evidence, of the profiles whose evidence all these nodes have; of several, those that ask for most."""
    given = {name: profile.evidence for name, profile in profiles.items() if profile.evidence}
    found = {name: evidence for name, evidence in given.items() if not any(_unmet(node, evidence) for node in nodes)}
    most = max(map(_weight, found.values()), default=0)
    return {name: evidence for name, evidence in found.items() if _weight(evidence) == most}


def lacking(
    profiles: Mapping[str, NetworkProfile], nodes: Sequence[NodeClass]
) -> dict[str, tuple[tuple[str, ...], int]]:
    """Name -> labels and resources that some nodes lack, and how many do; of the profiles that some nodes show, or
    else of all.
    """
    found = {name: _missing(profile.evidence, nodes) for name, profile in profiles.items() if profile.evidence}
    total = count(nodes)
    return {name: each for name, each in found.items() if each[1] < total} or found


def _missing(evidence: Evidence, nodes: Sequence[NodeClass]) -> tuple[tuple[str, ...], int]:
    lack = [(node, _unmet(node, evidence)) for node in nodes]
    keys = dict.fromkeys(key for _, unmet in lack for key in unmet)
    return tuple(keys), count(node for node, unmet in lack if unmet)


def count(nodes: Iterable[NodeClass]) -> int:
    return sum(node.count for node in nodes)


def classes(
    profiles: Mapping[str, NetworkProfile], nodes: Iterable[NodeClass], also: Iterable[str]
) -> tuple[NodeClass, ...]:
    """Nodes without labels and resources that no profile asks for, and of those that are alike then, one.

    also: labels that are kept besides.
    """
    every = [profile.evidence for profile in profiles.values() if profile.evidence]
    keys = {*also, *(key for each in every for key in each.labels)}
    names = frozenset(name for each in every for name in each.resources)
    found = Counter[tuple[frozenset[tuple[str, str]], frozenset[str]]]()
    for node in nodes:
        labels = frozenset((key, value) for key, value in node.labels.items() if key in keys)
        found[labels, node.resources & names] += node.count
    return tuple(NodeClass(dict(labels), resources, n) for (labels, resources), n in found.items())


def _unmet(node: NodeClass, evidence: Evidence) -> tuple[str, ...]:
    """Labels and resources that a node has not, or not with one of the values."""
    labels = (
        key
        for key, values in evidence.labels.items()
        if key not in node.labels or (values and node.labels[key] not in values)
    )
    return (*labels, *(name for name in evidence.resources if name not in node.resources))


def _weight(evidence: Evidence) -> int:
    return len(evidence.labels) + sum(map(bool, evidence.labels.values())) + len(evidence.resources)
