"""Where nobody has installed the admission policy: what the API server stores, the operator refuses by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from api.test_kubectl import WAYS, bring, surprises
from finetune_api.codegen import crd
from operating.process import OperatorProcess
from operating.team import condition, message
from testbed.cluster import Cluster
from testbed.control_plane import ControlPlane
from testbed.training_operator import pytorchjob_crd
from testbed.watch import wait_for_all


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with the definition, without the policy, and with the operator."""
    folder = tmp_path_factory.mktemp("unguarded")
    with (
        ControlPlane(folder, crds=[pytorchjob_crd(), crd.crd()]) as plane,
        OperatorProcess(plane.cluster.kubeconfig, folder),
    ):
        yield plane.cluster


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_unknown_key_of_any_section_is_said_in_accepted(unguarded: Cluster, way: Sequence[str]) -> None:
    assert unguarded.api.items("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies") == []
    namespace, jobs = unguarded.namespace(), surprises()
    done = bring(unguarded, namespace, way, list(jobs.values()))
    assert (done.returncode, done.stderr) == (0, "")
    path = f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs"
    found = wait_for_all(unguarded.api, path, lambda all_: all("status" in each for each in all_))
    status = {each["metadata"]["name"]: each["status"] for each in found}
    for key, job in jobs.items():
        said = status[job["metadata"]["name"]]
        assert condition(said, "Accepted") == ("False", "UnknownKey"), key
        assert message(said, "Accepted").startswith(f"{key}: 'surprise' is not a key of "), key
    assert unguarded.api.items(f"/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs") == []
