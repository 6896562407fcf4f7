"""A job on two nodes that is disturbed while it trains goes on from its checkpoint: the losses are the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from builders import Json
from e2e.runs import Run, runs
from e2e.team import Team
from e2e.test_two_nodes import SPEC
from finetune_api.runtime.protocol import RUN_FILE

STEPS, SAVE_STEPS, DISTURBED_AT = 60, 5, 10
SMALL: Json = SPEC | {
    # Dropout and shuffled rows: a run that does not restore the random states has other losses.
    "training": {"mode": "lora", "save_steps": SAVE_STEPS, "logging_steps": 1, "lora": {"dropout": 0.1}},
    # 24 rows a rank, four at a time: a step takes long enough for the job to be disturbed before it ends.
    "hyperparameters": {
        "global_batch": 48, "per_device_batch": 4, "n_epochs": 30, "learning_rate": 1e-3, "sequence_length": 64,
    },
}  # fmt: skip
SAME = 1e-6
"""Relative difference of losses that count as the same."""
COPY = "suspended-copy"
"""Output of the suspended job as it was before the job was resumed."""


@dataclass(frozen=True)
class Disturbance:
    """What happens to a job in the middle of its training, and what that costs."""

    job: str
    happen: Callable[[Team, str], None]
    restarts: int
    """Of lifecycle.maxRestarts."""
    parallelism: Json = field(default_factory=dict)
    """Of the job."""

    @property
    def spec(self) -> Json:
        return SMALL | {"hyperparameters": SMALL["hyperparameters"] | {"parallelism": self.parallelism}}


def suspend_and_resume(team: Team, job: str) -> None:
    set_suspend(team, job, "true")
    team.until(job, lambda status: status["phase"] == "Suspended")
    team.pods(0)
    shutil.copytree(team.volume / job, team.volume / COPY)
    set_suspend(team, job, "false")


def set_suspend(team: Team, job: str, value: str) -> None:
    team.kubectl("patch", "finetunejob", job, "--type=merge", "--patch", f'{{"spec": {{"suspend": {value}}}}}')


def delete_a_pod(team: Team, job: str) -> None:
    team.kubectl("delete", "pod", f"{job}-1-worker-1", "--force", "--grace-period=0")


def kill_a_rank(team: Team, job: str) -> None:
    """The launcher is process 1 of a pod, and its ranks are its children."""
    team.kubectl("exec", f"{job}-1-worker-1", "--", "sh", "-c", "kill -9 $(cat /proc/1/task/1/children)")


def is_due(status: Json) -> bool:
    return ((status.get("progress") or {}).get("checkpointStep") or 0) >= DISTURBED_AT


ZERO: Json = {"use_deepspeed": True, "deepspeed_stage": 2}


def run_undisturbed(team: Team, name: str, spec: Json) -> Run:
    """The same job on this machine, without a cluster."""
    team.run_here(name, spec)
    [run] = runs(team.volume / name)
    assert run.steps == list(range(1, STEPS + 1))
    return run


@pytest.fixture(scope="module")
def undisturbed(team: Team) -> Run:
    return run_undisturbed(team, "undisturbed", SMALL)


@pytest.mark.parametrize(
    "disturbance",
    [
        pytest.param(Disturbance("suspended", suspend_and_resume, restarts=0), id="suspended and resumed"),
        pytest.param(Disturbance("deleted", delete_a_pod, 0, ZERO), id="a pod deleted by force, with ZeRO-2"),
        pytest.param(Disturbance("killed", kill_a_rank, restarts=1), id="a rank killed by signal 9"),
    ],
)
def test_a_disturbed_job_has_the_losses_of_an_undisturbed_one(
    team: Team, undisturbed: Run, disturbance: Disturbance
) -> None:
    job = disturbance.job
    team.submit(job, **(disturbance.spec | {"output": {"uri": f"pvc://shared/{job}"}}))
    team.until(job, is_due, timeout_s=180)
    disturbance.happen(team, job)
    status = team.until(job, lambda status: status.get("completionTime"), timeout_s=180)
    team.kubectl("delete", "finetunejob", job)
    team.pods(0)

    assert status["phase"] == "Succeeded", status
    if disturbance.parallelism:
        undisturbed = run_undisturbed(team, f"{job}-here", disturbance.spec)
    assert (status["run"], status.get("restarts") or 0) == (2, disturbance.restarts)
    before, after = runs(team.volume / job)
    assert_continued(before, after, undisturbed)
    assert before.losses == same_as(undisturbed, before)
    assert status["result"]["metrics"]["train.loss"] == pytest.approx(undisturbed.losses[STEPS], rel=SAME)


def test_a_run_that_is_suspended_repeats_no_step(team: Team) -> None:
    before, after = runs(team.volume / "suspended")
    assert after.steps[0] == before.steps[-1] + 1


def test_this_machines_python_continues_a_checkpoint_of_the_pods(team: Team, undisturbed: Run) -> None:
    # A run here has other paths than one in pods. The undisturbed run says whose output this is with these paths.
    shutil.copy(team.volume / "undisturbed" / RUN_FILE, team.volume / COPY)
    team.run_here(COPY, SMALL)
    before, after = runs(team.volume / COPY)
    assert_continued(before, after, undisturbed)


def assert_continued(before: Run, after: Run, undisturbed: Run) -> None:
    """The second run did every step after the newest checkpoint and none before, and with the same losses."""
    # A checkpoint is valid before its record is written, and the first run may have ended in between.
    assert DISTURBED_AT <= before.saved <= after.resumed <= before.steps[-1]
    assert after.steps == list(range(after.resumed + 1, STEPS + 1))
    assert after.losses == same_as(undisturbed, after)


def same_as(undisturbed: Run, run: Run) -> object:
    return pytest.approx({step: undisturbed.losses[step] for step in run.steps}, rel=SAME)
