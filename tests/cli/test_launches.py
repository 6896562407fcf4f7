"""A local replica has the command and environment of its pod, save what only a cluster has."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

import builders
from finetune_cli import job_file, planning
from finetune_cli.local.launches import Launch, free_port, launches
from finetune_cli.overrides import Overrides
from finetune_plan import statuses
from finetune_plan.resolve import resolve
from finetune_plan.settings import PlanSettings
from finetune_plan.workload import Workload, workload

FOLDER = Path("folder")
SHELL = {
    "PATH": "/bin",
    "HF_TOKEN": "mine",
    "RANK": "7",
    "PET_NNODES": "9",
    "FINETUNE_REPORT": "/x",
    "WORLD_SIZE": "1",
}


def _workload(changes: dict[str, Any] | None = None) -> Workload:
    job = builders.job(changes or {})
    settings = PlanSettings()
    return workload(resolve(job, settings), settings, 3)


def _launches(changes: dict[str, Any] | None = None) -> tuple[Launch, ...]:
    return launches(_workload(changes), FOLDER, 4567, SHELL)


def test_each_node_is_a_replica_that_is_named_like_its_pod() -> None:
    found = _launches({"compute": {"gpu_type": "CPU", "nodes": 3}})
    assert [each.name for each in found] == ["sample-3-worker-0", "sample-3-worker-1", "sample-3-worker-2"]
    assert [each.node for each in found] == [0, 1, 2]


@pytest.mark.parametrize("profile", ["tcp", "coreweave-ib", "aws-efa", "auto"])
def test_replicas_use_no_network_of_a_cluster(profile: str, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    changes = {"compute": {"gpu_type": "H100", "nodes": 2}, "network.profile": profile}
    file.write_text(json.dumps(builders.job(changes)))
    found = planning.on_one_machine(planning.accept(job_file.read(str(file)), Overrides(), cluster=False))
    work = workload(found.resolution, planning.SETTINGS)
    assert [name for name in work.env if name.startswith(("NCCL", "UCX", "FI_"))] == []
    network = statuses.admission(found.verdict, now=planning.timestamp()).network
    assert network is not None
    assert (network.profile, network.reason) == ("none", "All nodes are processes of one machine.")


def test_replicas_meet_on_the_loopback_interface() -> None:
    first, second = _launches({"compute": {"gpu_type": "CPU", "nodes": 2}})
    for each, rank in ((first, "0"), (second, "1")):
        met = {name: value for name, value in each.env.items() if name.startswith("PET_")}
        assert met == {
            "PET_NNODES": "2", "PET_NODE_RANK": rank, "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": "4567",
        }  # fmt: skip


def test_configuration_and_report_are_files_of_the_replica() -> None:
    first, second = _launches({"compute": {"gpu_type": "CPU", "nodes": 2}})
    assert first.env["FINETUNE_RUN_CONFIG"] == "folder/sample-3-worker-0/run.json" == str(first.config)
    assert second.env["FINETUNE_REPORT"] == "folder/sample-3-worker-1/report.json" == str(second.report)


def test_the_command_is_the_pods_with_this_python() -> None:
    [launch] = _launches()
    assert launch.command == (sys.executable, *_workload().contract.command[1:])


def test_the_environment_is_the_pods_on_top_of_the_shells() -> None:
    [launch] = _launches({"pods.env": [{"name": "TOKENIZERS_PARALLELISM", "value": "true"}]})
    work = _workload()
    assert launch.env["TOKENIZERS_PARALLELISM"] == "true"
    assert launch.env["PATH"] == "/bin"
    mounted = {name for name, value in work.env.items() if value.startswith(("/scratch", "/etc/finetune", "/dev"))}
    assert {name: launch.env[name] for name in work.env if name not in mounted} == {
        name: value for name, value in work.env.items() if name not in mounted
    } | {"TOKENIZERS_PARALLELISM": "true"}


@pytest.mark.parametrize("changes", [
    {}, {"storage.cacheClaim": "cache"}, {"credentials.huggingFace": {"secretName": "hub"}},
])  # fmt: skip
def test_volumes_of_a_pod_are_not_looked_for_here(changes: dict[str, Any]) -> None:
    """The caches and tokens of whoever runs the command serve instead."""
    [launch] = _launches(changes)
    assert "HF_HOME" not in launch.env
    assert "HF_TOKEN_PATH" not in launch.env
    assert launch.env["HF_TOKEN"] == "mine"


def test_what_a_shell_knows_of_another_run_is_left_out() -> None:
    [launch] = _launches()
    assert not {"RANK", "WORLD_SIZE"} & set(launch.env)


def test_a_free_port_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as listening:
        assert listening.getsockname()[1] > 1023
