"""The chart through Helm itself (its Go library in a wheel): render and install, for tests and nobody else."""

from __future__ import annotations

from pathlib import Path

import helm_python
import yaml

from builders import Json
from testbed.cluster import Cluster

CHART = Path(__file__).parents[2] / "helm" / "finetune-operator"
RELEASE = "demo"
NAME = "demo-finetune-operator"
"""What a release of that name calls its objects."""


def render(values: Json | None = None, namespace: str = "prod") -> list[Json]:
    """The manifests. Raises helm_python.HelmValuesError for values that the schema refuses."""
    with helm_python.Chart.load(CHART) as chart:
        texts = chart.render(values, name=RELEASE, namespace=namespace)
    documents = (d for name, text in texts.items() if name.endswith(".yaml") for d in yaml.safe_load_all(text))
    return [document for document in documents if document]


def notes(values: Json | None = None) -> str:
    """What Helm tells the user after an installation."""
    with helm_python.Chart.load(CHART) as chart:
        return next(t for n, t in chart.render(values, name=RELEASE).items() if n.endswith("NOTES.txt"))


def find(manifests: list[Json], kind: str, name: str = NAME) -> Json:
    """The one manifest of a kind and a name."""
    [found] = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def environment(manifests: list[Json]) -> dict[str, str]:
    """The variables of the operator's container."""
    [container] = find(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"]}


def helm(cluster: Cluster, namespace: str) -> helm_python.Config:
    """Helm on a cluster; use it as a context manager."""
    return helm_python.Config(kubeconfig_path=cluster.kubeconfig, namespace=namespace)
