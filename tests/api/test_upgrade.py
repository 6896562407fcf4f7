"""What a newer definition asks of a job does not hold a job back that an older one accepted and that has run."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import pytest

from builders import resource
from finetune_api.codegen.crd import crd
from testbed.api import Api, ApiError, Json
from testbed.control_plane import ControlPlane

JOBS = "/apis/finetune.dev/v1alpha1/namespaces/default/finetunejobs"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunejobs.finetune.dev"


NETWORKS = "k8s.v1.cni.cncf.io/networks"


def older() -> Json:
    """The definition before there were rules about several keys, or about annotations."""
    found = copy.deepcopy(crd())
    schema = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["x-kubernetes-validations"]
    spec = schema["properties"]["spec"]["properties"]
    del spec["pods"]["properties"]["annotations"]["x-kubernetes-validations"]
    return found


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Jobs without an output and with a reserved annotation, `waiting` and `running`, after the upgrade."""
    with ControlPlane(tmp_path_factory.mktemp("upgrade"), crds=[older()]) as plane:
        api = plane.cluster.api
        for name in ("waiting", "running"):
            job = resource({"output": None, "pods.annotations": {NETWORKS: "rdma"}}, name=name)
            api.create(job | {"metadata": job["metadata"] | {"namespace": "default"}})
        api.patch(f"{JOBS}/running/status", {"status": {"run": 1}})
        api.patch(CRD, {"spec": {"versions": crd()["spec"]["versions"]}})
        give_up = time.monotonic() + 60
        while refused(api, "waiting", {"suspend": True}) == "":
            assert time.monotonic() < give_up, "the new definition is not in force"
        yield api


def refused(api: Api, name: str, change: Json) -> str:
    """Why a change is refused; empty if it is not. Nothing is stored."""
    try:
        api.patch(f"{JOBS}/{name}", {"spec": change}, dryRun="All")
    except ApiError as error:
        return error.message
    return ""


@pytest.mark.parametrize("change", [{"suspend": True}, {"cancel": True}, {"lifecycle": {"maxRestarts": 1}}], ids=str)
def test_a_job_that_has_run_can_be_controlled(api: Api, change: Json) -> None:
    assert refused(api, "running", change) == ""


def test_the_status_of_a_job_that_has_run_can_be_written(api: Api) -> None:
    api.patch(f"{JOBS}/running/status", {"status": {"phase": "Training"}})


def test_a_new_job_may_not_have_what_the_older_definition_took(api: Api) -> None:
    new = resource({"pods.annotations": {NETWORKS: "rdma"}}, name="new")
    with pytest.raises(ApiError, match="give pods devices and networks of the node"):
        api.create(new | {"metadata": new["metadata"] | {"namespace": "default"}})


def test_a_job_that_has_not_run_is_judged_by_the_newer_rules(api: Api) -> None:
    assert "Set output.uri" in refused(api, "waiting", {"suspend": True})
    assert refused(api, "waiting", {"suspend": True, "output": {"uri": "pvc://models/out"}}) == ""
