"""`finetune render`: what a cluster would have, on standard output, and what to know about it beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.calls import ROW, finetune, job, listing
from finetune_cli import kubernetes_yaml


def _rendered(*arguments: str | Path) -> Any:
    return kubernetes_yaml.value(finetune("render", *arguments).stdout)


def test_the_manifest_is_a_pytorchjob_with_the_run_configuration_inside(tmp_path: Path) -> None:
    manifest = _rendered(job(tmp_path))
    assert (manifest["kind"], manifest["metadata"]["name"]) == ("PyTorchJob", "sample-1")
    template = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    config = json.loads(template["metadata"]["annotations"]["finetune.dev/run-config"])
    assert config == _rendered(tmp_path / "job.yaml", "--what", "run")


def test_yaml_and_json_hold_the_same(tmp_path: Path) -> None:
    file = job(tmp_path)
    assert json.loads(finetune("render", file, "-o", "json").stdout) == _rendered(file)


def test_all_parts_come_in_one_map(tmp_path: Path) -> None:
    whole = _rendered(job(tmp_path), "--what", "all")
    assert list(whole) == ["pytorchjob", "run", "status"]
    assert whole["status"]["phase"] == "Queued"


def test_notes_are_not_data(tmp_path: Path) -> None:
    result = finetune("render", job(tmp_path))
    assert "[ValidationSkipped]" in result.stderr
    assert "note:" not in result.stdout


def test_options_change_what_is_rendered(tmp_path: Path) -> None:
    run = _rendered(job(tmp_path), "--what", "run", "--set", "hyperparameters.learning_rate=8e-6", "--examples", "5")
    assert (run["optimizer"]["learning_rate"], run["data"]["examples"]) == (8e-6, 5)


def test_a_refused_job_is_not_rendered(tmp_path: Path) -> None:
    result = finetune("render", job(tmp_path, ("gpu_type: CPU", "gpu_type: Abacus")))
    assert (result.exit_code, result.stdout) == (2, "")
    assert (
        "error: spec.compute.gpu_type: 'Abacus' is not an accelerator known here. [UnknownGpuType]" in result.stderr
    )


def test_a_dry_run_prints_the_manifest_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job(tmp_path)
    (tmp_path / "train.jsonl").write_text(ROW)
    before = listing(tmp_path)
    result = finetune("run", "job.yaml", "--dry-run")
    assert result.exit_code == 0
    assert result.stdout == finetune("render", "job.yaml").stdout
    assert listing(tmp_path) == before


@pytest.mark.parametrize("output", ["", "  output: {uri: out}\n"], ids=["no output", "a path"])
def test_only_a_cluster_wants_an_output_that_is_kept(tmp_path: Path, output: str) -> None:
    file = job(tmp_path, ("  output: {ephemeral: true}\n", output))
    for verb in ("validate", "render"):
        result = finetune(verb, file)
        assert result.exit_code == 2
        assert "[OutputNotKept]\n  remedy: Set output.uri to pvc://CLAIM/FOLDER" in result.output
    assert finetune("run", file, "--dry-run").exit_code == 0
