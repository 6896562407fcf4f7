"""What `make cluster` prints, refuses and does with signals. The cluster itself is that of tests/e2e."""

from __future__ import annotations

import os
import re
import shlex
import signal
from pathlib import Path

import pytest
import yaml

from cli.calls import finetune
from e2e.try_cluster import instructions, stopping
from testbed.images import FIRST_GB, LATER_GB, ImageError, require_disk

ROOT = Path(__file__).parents[2]
GB = 10**9


def commands() -> list[list[str]]:
    text = instructions(Path("/c/kubeconfig"), Path("/c/bin"), Path("/c/volume"))
    return [shlex.split(line) for line in text.splitlines() if line.startswith("  ")]


def test_the_variables_name_the_cluster_and_its_programs() -> None:
    assert commands()[0] == ["export", "KUBECONFIG=/c/kubeconfig", "PATH=/c/bin:$PATH"]


def test_the_job_to_submit_is_valid_and_the_job_to_watch_is_that_job() -> None:
    submit, watch = commands()[1:3]
    assert (submit[:2], watch[:2]) == (["finetune", "submit"], ["finetune", "watch"])
    assert finetune("validate", ROOT / submit[2]).exit_code == 0
    assert yaml.safe_load((ROOT / submit[2]).read_text())["metadata"]["name"] == watch[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_ends_the_cluster_and_the_second_does_not_disturb_that(number: signal.Signals) -> None:
    ended: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run_until_stopped(number, ended)
    assert ended == [number]


def run_until_stopped(number: int, ended: list[int]) -> None:
    with stopping():
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)
            ended.append(number)


@pytest.mark.parametrize(
    ("free", "filled", "needed"),
    [
        pytest.param(FIRST_GB * GB - 1, False, FIRST_GB, id="an empty cache"),
        pytest.param(LATER_GB * GB - 1, True, LATER_GB, id="a cache that was filled before"),
    ],
)
def test_too_little_disk_is_refused_before_anything_is_built(free: int, filled: bool, needed: int) -> None:
    require_disk(Path("/cache"), free + 1, filled=filled)
    expected = rf"{needed} GB of disk at /cache, and {re.escape(f'{free / GB:.1f}')} GB are free.*XDG_CACHE_HOME"
    with pytest.raises(ImageError, match=expected):
        require_disk(Path("/cache"), free, filled=filled)
