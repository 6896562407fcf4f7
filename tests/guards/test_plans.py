"""Sampled plans against the recorded ones; plans.py says how to look at one, and what the two hashes are."""

from __future__ import annotations

import os

import pytest

from guards import jobs, plans

LEAST = 100
"""Samples in which each key that is not refused is said."""
ACTIONS = ("none", "create", "delete", "requeue", "remember")
PHASES = ("Queued", "Preparing", "Starting", "Training", "Stopping", "Succeeded", "Failed", "Suspended", "Cancelled")


@pytest.fixture(scope="module")
def found() -> list[tuple[str, str]]:
    hashes = [plans.hashes(sample) for sample in plans.samples()]
    if os.environ.get("GUARDS") == "rewrite":
        plans.record(hashes)
    return hashes


def test_every_sampled_plan_has_the_recorded_structure(found: list[tuple[str, str]]) -> None:
    assert _differing(found, 0) == [], "other actions, manifests or status: `--show N` prints the plan of sample N"


def test_every_sampled_plan_has_the_recorded_wording(found: list[tuple[str, str]]) -> None:
    assert _differing(found, 1) == [], "after deliberate changes of messages: GUARDS=rewrite pytest tests/guards"


def _differing(found: list[tuple[str, str]], which: int) -> list[int]:
    """Numbers of the first samples whose structure (0) or whole (1) is another than was recorded."""
    pairs = zip(found, plans.recorded(), strict=True)
    return [number for number, (now, then) in enumerate(pairs) if now[which] != then[which]][:20]


def test_a_sample_is_the_same_whether_or_not_others_were_drawn_before_it() -> None:
    assert plans.hashes(plans.one(1234)) == plans.hashes(plans.samples()[1234])


def test_sentences_are_no_structure() -> None:
    answer = {"status": {"conditions": [{"reason": "A", "message": "b"}], "network": {"reason": "Because."}}}
    assert plans.structure(answer) == {
        "status": {"conditions": [{"reason": "A", "message": "..."}], "network": {"reason": "..."}}
    }


def test_the_samples_reach_every_key_phase_and_action_and_half_are_accepted() -> None:
    reached = plans.reached(plans.samples())
    assert reached["verdict"]["accepted"] >= plans.COUNT // 2
    rare = {path for path, key in jobs.KEYS.items() if reached["keys"][path] < LEAST}
    assert {path for path in rare if jobs.KEYS[path].get("fate") != "refused"} == set()
    assert all(reached["keys"][path] for path in jobs.KEYS)
    assert all(reached["actions"][action] for action in ACTIONS)
    assert all(reached["phase"][phase] for phase in PHASES)
