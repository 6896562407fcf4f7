"""Settings that make no sense end the process before it has done anything, and say why."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from finetune_operator.settings import Settings

WRONG = {
    "a heartbeat that nobody watches": ({"WATCH_NAMESPACE": "team"}, "Set both to the same namespace."),
    "no workers": ({"WORKERS": "0"}, "greater than or equal to 1"),
    "a network with an unknown field": (
        {"NETWORKS": '{"ours": {"description": "x", "hostIPC": true}}'},
        "networks.ours: hostIPC: Extra inputs are not",
    ),
    "a network without its base": ({"NETWORKS": '{"efa2": {"base": "efa"}}'}, "base: 'efa' is no built-in profile"),
    "a network whose name means something else": (
        {"NETWORKS": '{"auto": {"base": "tcp"}}'},
        "networks.auto: no name",
    ),
    "a default that is no network": (
        {"DEFAULT_NETWORKS": '{"H100": "efa"}'},
        "default_networks.H100: 'efa' is no network profile; known are aks-nd",
    ),
    "a default of no gpu_type": (
        {"DEFAULT_NETWORKS": '{"H10O": "tcp"}'},
        "default_networks.H10O: no gpu_type; choose one of A100, A100-40GB,",
    ),
    "a default of CPUs": ({"DEFAULT_NETWORKS": '{"CPU": "tcp"}'}, "default_networks.CPU: no gpu_type"),
    "a default that is not complete": (
        {"DEFAULT_NETWORKS": '{"H100": "aws-efa"}'},
        "default_networks.H100: aws-efa lacks devices; say it in networks.aws-efa.values.",
    ),
    "a default that is not allowed": (
        {"DEFAULT_NETWORKS": '{"*": "gke-gib"}'},
        "/home/kubernetes/bin/gib); name it in privileged_networks, too.",
    ),
    "a network that takes GPUs": (
        {"NETWORKS": '{"ours": {"description": "x", "resources": {"nvidia.com/gpu": 8}}}'},
        "networks.ours: resources: nvidia.com/gpu is what a job has its GPUs by; remove it.",
    ),
    "a network that takes GPUs by another name": (
        {
            "NETWORKS": '{"x": {"base": "nebius", "values": {"resource": "example.com/gpu"}}}',
            "ACCELERATORS": '{"X1": {"products": ["X1"], "memory_gib": 8, "resource": "example.com/gpu"}}',
        },
        "networks.x: resources: example.com/gpu is what a job has its GPUs by",
    ),
    "an accelerator that no node can have": (
        {"ACCELERATORS": '{"X1": {"products": [], "memory_gib": 8, "labels": {"foo": []}}}'},
        "accelerators.X1: labels: 'foo' is no label with values;",
    ),
    "an accelerator with an unknown field": (
        {"ACCELERATORS": '{"X1": {"products": [], "memory_gib": 8, "label": {"foo": ["a"]}}}'},
        "accelerators.X1.label",
    ),
    "an accelerator with two spellings": (
        {"ACCELERATORS": '{"x1": {"products": [], "memory_gib": 8}, "X1": {"products": [], "memory_gib": 8}}'},
        "accelerators.X1: it is accelerators.x1, too; keep one of them.",
    ),
    "an accelerator for CPUs": (
        {"ACCELERATORS": '{"cpu": {"products": [], "memory_gib": 8}}'},
        "accelerators.cpu: it is the gpu_type of jobs without GPUs, too;",
    ),
    "rights for a network that is none": (
        {"PRIVILEGED_NETWORKS": '["efa"]'},
        "privileged_networks: 'efa' is no network profile",
    ),
    "an unknown level": ({"LOG_LEVEL": "loud"}, "'debug', 'info', 'warning' or 'error'"),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG)
def test_wrong_settings_end_the_process_with_code_2(given: dict[str, str], said: str) -> None:
    environment = os.environ | {f"FINETUNE_OPERATOR_{name}": value for name, value in given.items()}
    command = [sys.executable, "-m", "finetune_operator"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr


def test_networks_arrive_in_the_plan_and_a_gpu_type_is_one_in_any_case() -> None:
    networks = {"efa2": {"base": "aws-efa", "values": {"devices": 16}}}
    plan = Settings(
        networks=networks, default_networks={"h100": "efa2", "*": "none"}, privileged_networks=("oke-vf",)
    ).plan()
    assert (plan.networks, plan.privileged_networks) == (networks, ("oke-vf",))
    assert plan.default_networks == {"H100": "efa2", "*": "none"}


def test_null_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chart's values may say null where a setting has no default."""
    monkeypatch.setenv("FINETUNE_OPERATOR_TTL_SECONDS_AFTER_FINISHED", "null")
    assert Settings().ttl_seconds_after_finished is None
