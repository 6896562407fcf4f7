"""Whatever happens to a job, and in whatever order: what holds after every pass, and how every life ends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from builders import Json
from finetune_api.resource.conditions import FAILURE_TARGET
from finetune_plan.model import CreateRun
from plan.lives import CONTROLLERS, SETTINGS, TROUBLES, Life, Moment

LIVES, PART = 300, 50
STEPS = 50
"""Things that happen before the cluster calms down."""
ROUNDS = 300
"""Of 5 seconds, in which a life comes to its end when nothing happens to it any more."""
MOST_PASSES = 6
"""That follow each other without an event."""
STOPPED = ("Failed", "Cancelled", "Suspended")


def over(status: Json) -> bool:
    return "completionTime" in status


def free_restarts(moment: Moment) -> int:
    return int((moment.after.get("retry") or {}).get("freeRestarts") or 0)


ALWAYS: dict[str, Callable[[Moment], bool]] = {
    "a job that is over creates nothing": lambda m: not (
        over(m.before) and any(isinstance(action, CreateRun) for action in m.answer.actions)),
    "and stays what it is": lambda m: not over(m.before) or all(
        m.before[key] == m.after[key] for key in ("phase", "completionTime")),
    "a job is Stopping until its last pod has ended": lambda m: not (
        m.active and m.after["phase"] in STOPPED and m.before.get("phase") != m.after["phase"]),
    "and until no run makes others": lambda m: not (
        m.making and m.after["phase"] in STOPPED and m.before.get("phase") != m.after["phase"]),
    "a verdict is never taken back": lambda m: not verdict(m.before) or verdict(m.before) == verdict(m.after),
    "and ends the job, whatever is said or seen later": lambda m: not verdict(m.after) or (
        m.after["phase"] in ("Stopping", "Failed", "Cancelled")),
    "two runs never hold nodes at once": lambda m: len({pod.run for pod in m.active}) < 2,
    "runs are numbered upwards": lambda m: (m.after.get("run") or 0) >= (m.before.get("run") or 0),
    "restarts do not exceed the budget": lambda m: (m.after.get("restarts") or 0) <= m.allowed,
    "nor what crashed": lambda m: (m.after.get("restarts") or 0) <= m.crashes,
    "a job in which nothing crashed fails only when its free restarts are used up": lambda m: bool(
        m.crashes or m.after["phase"] != "Failed" or free_restarts(m) >= SETTINGS.max_free_restarts),
    "time on nodes never decreases": lambda m: seconds(m.before) <= seconds(m.after),
}  # fmt: skip


def verdict(status: Json) -> str:
    return next((c["reason"] for c in status.get("conditions") or () if c["type"] == FAILURE_TARGET), "")


def seconds(status: Json) -> int:
    return int((status.get("active") or {}).get("seconds", 0))


def reconcile(life: Life) -> None:
    for number, moment in enumerate(life.passes()):
        broken = [sentence for sentence, holds in ALWAYS.items() if not holds(moment)]
        assert not broken, story(life, broken)
        assert number < MOST_PASSES, story(life, ["passes do not follow each other without an event"])


def story(life: Life, broken: list[str]) -> str:
    return "\n".join([f"seed {life.seed}, nodes {life.nodes}", *life.log[-25:], *(f"NOT: {each}" for each in broken)])


def trouble(life: Life) -> None:
    for _ in range(STEPS):
        life.draw.choice(life.draw.choice((CONTROLLERS, CONTROLLERS, TROUBLES)))(life)
        life.now += timedelta(seconds=1)
        reconcile(life)


def calm(life: Life) -> None:
    """Everything works again, and the job is resumed."""
    life.down = life.dying = life.refusing = life.spec["suspend"] = False
    life.note("calm")
    for number in range(ROUNDS):
        for run in [run for run in life.runs.values() if run.suspended]:
            life.set_run(run, suspended=False)
        for act in CONTROLLERS:
            act(life)
        if number % 3 == 2:
            life.trainer()
        reconcile(life)
        if over(life.status) and not life.pods and life.due is None and not life.news:
            return
        life.now += timedelta(seconds=5)


@pytest.mark.parametrize("part", range(LIVES // PART))
def test_every_life_keeps_what_holds_and_ends_and_then_holds_nothing(part: int) -> None:
    for seed in range(part * PART, (part + 1) * PART):
        life = Life(seed, nodes=1 + seed % 2, queue=seed % 4 >= 2, allowed=seed % 3)
        trouble(life)
        calm(life)
        assert over(life.status), story(life, ["every life ends"])
        active = [pod for pod in life.pods.values() if pod.phase in ("Pending", "Running")]
        assert not active, story(life, ["nothing holds quota after the end"])
