"""However a job is spread over processes and nodes, it is the same job."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune_api.runtime.choices import Engine
from finetune_api.runtime.protocol import MASTER_ADDR_ENV, MASTER_PORT_ENV, NODE_RANK_ENV, NODES_ENV
from trainer import parity_node
from trainer.parity_cases import STEPS_PER_EPOCH, ParityCase, Trace, cases, everywhere, traces
from trainer.ranks import run_ranks, values

LOSS = 1e-5
"""Largest difference of a loss, in nats."""
RELATIVE = 1e-4
"""Largest relative difference of a gradient norm, and of a parameter's gradient."""
MANY = (Engine.DDP, Engine.FSDP2)
HYBRID = {"rows": 8, "steps": 6}
"""Two micro batches a rank: the sum over nodes waits for the second."""
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def alone() -> dict[str, Trace]:
    """Every job in one process."""
    found: dict[str, Trace] = values(run_ranks(1, traces, cases(Engine.SINGLE)))[0]
    return {case.job: found[str(case)] for case in cases(Engine.SINGLE)}


@pytest.fixture(scope="module")
def two_processes() -> dict[str, Trace]:
    first, second = values(run_ranks(2, traces, everywhere(*MANY)))
    assert all(first[name].losses == second[name].losses for name in first), "ranks report different losses"
    return dict(first)


@pytest.fixture(scope="module")
def hybrid() -> tuple[dict[str, Trace], dict[str, Trace]]:
    """Two ranks on each of two nodes that shard inside and replicate across, and the same jobs in one process."""
    wanted = [*cases(Engine.HSDP, **HYBRID), *cases(Engine.HSDP, synced=False, **HYBRID)]
    alone = values(run_ranks(1, traces, cases(Engine.SINGLE, **HYBRID)))[0]
    return alone, values(run_ranks(4, traces, wanted))[0]


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trace]:
    """Two launchers that know each other by the variables of the Training Operator, one process each."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folders = [tmp_path_factory.mktemp(f"node-{number}") for number in range(2)]
    launchers = [_launcher(number, port, folder) for number, folder in enumerate(folders)]
    try:
        codes = [launcher.wait() for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert codes == [0, 0]
    found = torch.load(folders[0] / parity_node.TRACES, weights_only=True)
    return {name: Trace(**parts) for name, parts in found.items()}


def _launcher(number: int, port: int, folder: Path) -> subprocess.Popen[bytes]:
    variables = {
        NODES_ENV: "2",
        NODE_RANK_ENV: str(number),
        MASTER_ADDR_ENV: "127.0.0.1",
        MASTER_PORT_ENV: str(port),
        "PYTHONPATH": str(TESTS),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen([*parity_node.COMMAND, str(folder)], env=os.environ | variables)


@pytest.mark.parametrize("case", cases(Engine.SINGLE), ids=lambda case: case.job)
def test_the_job_learns_something(case: ParityCase, alone: dict[str, Trace]) -> None:
    losses = alone[case.job].losses
    first, second = losses[:STEPS_PER_EPOCH], losses[STEPS_PER_EPOCH : 2 * STEPS_PER_EPOCH]
    assert sum(first) / len(first) - sum(second) / len(second) >= 0.05
    assert all(bool(gradient.any()) for gradient in alone[case.job].gradients.values())


@pytest.mark.parametrize("case", cases(*MANY), ids=str)
def test_two_processes_train_like_one(
    case: ParityCase, alone: dict[str, Trace], two_processes: dict[str, Trace]
) -> None:
    assert differences(alone[case.job], two_processes[str(case)]) == []


@pytest.mark.parametrize("case", cases(*MANY), ids=str)
def test_two_nodes_train_like_one(case: ParityCase, alone: dict[str, Trace], two_nodes: dict[str, Trace]) -> None:
    assert differences(alone[case.job], two_nodes[str(case)]) == []


@pytest.mark.parametrize("case", cases(Engine.HSDP, **HYBRID), ids=str)
def test_hybrid_sharding_trains_like_one(case: ParityCase, hybrid: tuple[dict[str, Trace], dict[str, Trace]]) -> None:
    alone, found = hybrid
    assert differences(alone[str(replace(case, engine=Engine.SINGLE))], found[str(case)]) == []
    lost = differences(alone[str(replace(case, engine=Engine.SINGLE))], found[str(replace(case, synced=False))])
    assert [kind for kind in ("loss", "norm", "gradient") if not any(line.startswith(kind) for line in lost)] == []


@pytest.mark.parametrize("case", cases(*MANY, synced=False, steps=3), ids=str)
@pytest.mark.parametrize("layout", ["two_processes", "two_nodes"])
def test_ranks_that_keep_their_gradients_are_found_out(
    layout: str, case: ParityCase, alone: dict[str, Trace], request: pytest.FixtureRequest
) -> None:
    found = differences(alone[case.job], request.getfixturevalue(layout)[str(case)])
    assert [kind for kind in ("loss", "norm", "gradient") if not any(line.startswith(kind) for line in found)] == []


def differences(reference: Trace, other: Trace) -> list[str]:
    """In what `other` is not the same run, as far as it went; one line each."""
    steps = len(other.losses)
    assert steps >= 3
    pairs = list(zip(reference.losses[:steps], other.losses, strict=True))
    found = [f"loss of step {i}: {a} and {b}" for i, (a, b) in enumerate(pairs) if not abs(a - b) <= LOSS]
    norms = zip(reference.norms[:steps], other.norms, strict=True)
    found += [f"norm of step {i}: {a} and {b}" for i, (a, b) in enumerate(norms) if not abs(a - b) <= RELATIVE * a]
    if reference.gradients.keys() != other.gradients.keys():
        return [*found, f"names: {reference.gradients.keys() ^ other.gradients.keys()}"]
    for name, gradient in reference.gradients.items():
        error = float((gradient - other.gradients[name]).norm() / gradient.norm())
        found += [] if error <= RELATIVE else [f"gradient of {name}: {error:.1e} of it"]
    return found
