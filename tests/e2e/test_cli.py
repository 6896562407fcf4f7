"""The command line against a real kubelet: rows up, lines and progress on the way, the adapter down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli_remote.calls import Console
from e2e.team import Team
from e2e.test_two_nodes import SPEC
from finetune_cli.remote.dataset_upload import CONFIG_MAP_BYTES

ROWS, USED = 12_000, 48
"""Rows that are sent, and those of them that are trained on."""


@pytest.fixture
def console(team: Team, operator: str, tmp_path: Path) -> Console:
    """Somebody with the rights of Kubernetes' own role `edit`, to which our chart adds."""
    kubeconfig = team.cluster.service_account(team.namespace, "person")
    team.kubectl("create", "rolebinding", "person", "--clusterrole=edit", f"--serviceaccount={team.namespace}:person")
    return Console(kubeconfig, team.namespace, tmp_path)


def job(folder: Path) -> str:
    spec = SPEC | {"output": {"uri": "pvc://shared/by-cli"},
                   "hyperparameters": {**SPEC["hyperparameters"], "n_epochs": 4}}  # fmt: skip
    body = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FinetuneJob",
        "metadata": {"name": "by-cli"},
        "spec": spec,
    }
    (folder / "job.json").write_text(json.dumps(body))
    return "job.json"


def test_rows_go_up_lines_come_out_and_the_adapter_comes_down(team: Team, console: Console) -> None:
    rows = console.rows(ROWS)
    assert (console.folder / rows).stat().st_size > CONFIG_MAP_BYTES
    with console.start("submit", job(console.folder), "--dataset", rows, "--examples", str(USED)) as sending:
        assert sending.ended(180) == 0, sending.lines
    [sent] = (team.volume / "finetune-datasets").rglob("rows.jsonl")
    assert sent.read_bytes() == (console.folder / rows).read_bytes()
    with console.start("watch", "by-cli") as watching, console.start("logs", "by-cli", "-f") as following:
        assert watching.ended(300) == 0, watching.lines
        assert following.ended(60) == 0, following.lines
    assert any(line.startswith("step ") for line in watching.lines)
    assert any(line.startswith("[node 0] step 6/") for line in following.lines)
    with console.start("fetch", "by-cli", "--to", "adapter") as fetching:
        assert fetching.ended(120) == 0, fetching.lines
    there = team.volume / "by-cli" / "result"
    assert {p.name: p.read_bytes() for p in (console.folder / "adapter").iterdir()} == {
        p.name: p.read_bytes() for p in there.iterdir()
    }
    assert (console.folder / "adapter" / "adapter_model.safetensors").is_file()
    assert console("delete", "by-cli", "--wait").code == 0
    team.pods(0)
