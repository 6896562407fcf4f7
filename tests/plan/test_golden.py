"""The plan of each case, compared with what lies beside it. `make golden` rewrites it; read the diff."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.resource.names import RUN_CONFIG_ANNOTATION
from finetune_cli.kubernetes_yaml import value
from finetune_plan import network_files
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.resolve import validate
from finetune_plan.settings import PlanSettings
from finetune_plan.statuses import admission
from finetune_plan.workload import workload
from plan import networks

GOLDEN, NETWORKS = (Path(__file__).parents[1] / name for name in ("golden", "golden-networks"))
NOW = "2026-01-01T00:00:00Z"


def planned(resource: dict[str, Any]) -> dict[str, str]:
    """File name -> text, for one job."""
    settings = PlanSettings()
    verdict = validate(resource, settings)
    assert verdict.resolution is not None, verdict.problems
    manifest = BACKEND.render(workload(verdict.resolution, settings), "team")
    status = admission(verdict, now=NOW).model_dump(mode="json", exclude_none=True)
    config = json.loads(workload(verdict.resolution, settings).config_json)
    return {
        "pytorchjob.yaml": _yaml(manifest),
        "run.json": json.dumps(config, indent=2) + "\n",
        "status.yaml": _yaml(status),
    }


def _yaml(data: Any) -> str:
    text: str = yaml.safe_dump(data, sort_keys=False, width=10_000)
    return text


@pytest.mark.parametrize("case", sorted(p.name for p in GOLDEN.iterdir()))
def test_the_plan_is_the_golden_one(case: str) -> None:
    folder = GOLDEN / case
    resource = value((folder / "job.yaml").read_text())
    found = planned(resource)
    if os.environ.get("GOLDEN") == "rewrite":
        for name, text in found.items():
            (folder / name).write_text(text)
    assert found == {name: (folder / name).read_text() for name in found}


@pytest.mark.parametrize("name", network_files.names())
def test_the_manifest_of_a_network_profile_is_the_golden_one(name: str) -> None:
    manifest = networks.manifest(name)
    networks.pod(manifest)["metadata"]["annotations"].pop(RUN_CONFIG_ANNOTATION)
    path, found = NETWORKS / f"{name}.yaml", _yaml(manifest)
    if os.environ.get("GOLDEN") == "rewrite":
        path.write_text(found)
    assert found == path.read_text()


def test_every_golden_pod_asks_for_nothing_that_the_restricted_level_forbids() -> None:
    for path in GOLDEN.glob("*/pytorchjob.yaml"):
        for replica in yaml.safe_load(path.read_text())["spec"]["pytorchReplicaSpecs"].values():
            pod = replica["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod["automountServiceAccountToken"] is False
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
            assert all("hostPath" not in v for v in pod["volumes"])
            for container in pod["containers"]:
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
