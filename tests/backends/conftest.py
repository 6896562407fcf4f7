"""A control plane with the controllers of all backends, and an operator over each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from backends.serve import EVERY
from builders import Json
from chart.helm import NAME, environment, find, render
from chart.rights import Access, asked, denied
from finetune_plan.backends import BACKENDS
from finetune_plan.backends.protocol import Backend, Right
from operating.process import OperatorProcess
from operating.team import Team
from testbed.cluster import Cluster
from testbed.control_plane import ControlPlane
from testbed.fixtures import cluster, control_plane, namespace

__all__ = ["cluster", "control_plane", "namespace"]

OF_THE_ACCOUNT = ("ServiceAccount", "Role", "RoleBinding")
PREFIX = "FINETUNE_OPERATOR_"


@pytest.fixture(scope="session", params=EVERY.values(), ids=list(EVERY))
def backend(request: pytest.FixtureRequest) -> Backend:
    found: Backend = request.param
    return found


@pytest.fixture
def team(cluster: Cluster, namespace: str, backend: Backend) -> Team:
    """A namespace in which no operator serves."""
    return Team(cluster.api, namespace, backend=backend)


@dataclass(frozen=True)
class Served:
    """A namespace in which an operator serves that may do what its backend declares, and no more."""

    team: Team
    plane: ControlPlane

    def denied(self) -> list[str]:
        return denied(self.plane.requests(), self._user)

    def idle(self) -> list[str]:
        """Rights that the backend declares and nothing has used."""
        used = asked(self.plane.requests(), self._user)
        declared = (Access(v, r.group, r.resource, "", "") for r in self.team.backend.rights for v in r.verbs)
        return [str(right) for right in declared if not any(map(right.covers, used))]

    @property
    def _user(self) -> str:
        return f"system:serviceaccount:{self.team.namespace}:{NAME}"


@pytest.fixture(scope="session")
def served(
    control_plane: ControlPlane, backend: Backend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """An operator over the backend, under the chart's role for one namespace."""
    cluster, folder = control_plane.cluster, tmp_path_factory.mktemp("served")
    team = Team(cluster.api, cluster.namespace(backend.plural), backend=backend)
    manifests = render({"settings": {"watchNamespace": team.namespace}}, team.namespace)
    find(manifests, "Role")["rules"] = rules(find(manifests, "Role")["rules"], backend)
    for manifest in manifests:
        if manifest["kind"] in OF_THE_ACCOUNT:
            cluster.api.create(manifest)
    settings = {k.removeprefix(PREFIX): v for k, v in environment(manifests).items() if k != f"{PREFIX}HTTP_PORT"}
    kubeconfig = cluster.service_account(team.namespace, NAME)
    with OperatorProcess(kubeconfig, folder, settings, ("-m", "backends.serve", backend.kind)):
        yield Served(team, control_plane)


def rules(chart: list[Json], backend: Backend) -> list[Json]:
    """The rules of the chart, with the rights of this backend in the place of those that it ships."""
    shipped = [_rule(right) for each in BACKENDS for right in each.rights]
    assert [rule for rule in shipped if rule not in chart] == [], "the chart's role is generated from them"
    return [rule for rule in chart if rule not in shipped] + [_rule(right) for right in backend.rights]


def _rule(right: Right) -> Json:
    return {"apiGroups": [right.group], "resources": [right.resource], "verbs": list(right.verbs)}
