"""The root cause of a failed run, where pods were taken away or have lost a peer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import FinalReport
from finetune_plan.model import ObservedPod
from finetune_plan.retry import root_cause

SIGKILL = 137


def pod(node: int, code: int | None = None, *, time: float | None = None, lost: str = "") -> ObservedPod:
    report = None if time is None or code is None else _report(code, time)
    phase = "Failed" if code or lost else "Running" if code is None else "Succeeded"
    return ObservedPod(f"p{node}", f"u{node}", 1, node, phase, exit_code=code, report=report, disruption=lost)


def failed(node: int, code: int | None = None, why: str = "") -> ObservedPod:
    """A pod of phase Failed, whatever its trainer came to."""
    return replace(pod(node, code), phase="Failed", failure=why)


def _report(code: int, time: float) -> FinalReport:
    return FinalReport(time=time, exit_code=code, reason="", message="own words", step=1)


CASES: dict[str, tuple[tuple[ObservedPod, ...], tuple[int, str, bool]]] = {
    "a lost peer is the loss of the pod that was taken away": (
        (pod(0, Exit.PEER_LOST, time=1.0), pod(1, lost="Preempted")),
        (Exit.PEER_LOST, "The cluster removed pod p1: Preempted.", True)),
    "so is a signal": (
        (pod(0, SIGKILL), pod(1, lost="Evicted")), (Exit.PEER_LOST, "The cluster removed pod p1: Evicted.", True)),
    "a failure of its own is the cause, whatever else was lost": (
        (pod(0, Exit.NON_FINITE, time=2.0), pod(1, lost="Evicted")), (Exit.NON_FINITE, "Pod p0: own words", False)),
    "a pod that was taken away before any other failed": (
        (pod(1, lost="NodeLost"),), (Exit.PEER_LOST, "The cluster removed pod p1: NodeLost.", True)),
    "if all have lost a peer, the first of them": (
        (pod(0, Exit.PEER_LOST, time=2.0), pod(1, Exit.PEER_LOST, time=1.0)),
        (Exit.PEER_LOST, "Pod p1: own words", False)),
    "if all stood still, the one whose ranks did first": (
        (pod(0, Exit.STALLED, time=2.0), pod(1, Exit.STALLED, time=1.0)),
        (Exit.STALLED, "Pod p1: own words", False)),
    "a pod whose trainer never started": (
        (pod(0), failed(1, why="init container mesh exited with code 3 (Error: no route)")),
        (Exit.CRASHED, "Pod p1: init container mesh exited with code 3 (Error: no route).", False)),
    "the same, whose peer gave up first": (
        (pod(0, Exit.PEER_LOST, time=1.0), failed(1, why="init container mesh exited with code 3 (Error)")),
        (Exit.CRASHED, "Pod p1: init container mesh exited with code 3 (Error).", False)),
    "a pod that failed although its trainer ended well": (
        (pod(0), failed(1, Exit.OK, "container proxy exited with code 1 (Error)")),
        (Exit.CRASHED, "Pod p1: container proxy exited with code 1 (Error).", False)),
    "a pod that failed and says nothing": (
        (pod(0), failed(1)), (Exit.CRASHED, "Pod p1: it failed and does not say why.", False)),
    "a pod that was deleted before it could end": (
        (pod(0), replace(failed(1), termination_deadline="2026-01-01T12:00:00Z")),
        (Exit.PEER_LOST, "Pod p1 was deleted.", True)),
    "a pod that was deleted and killed at the end of its grace": (
        (pod(0), replace(pod(1, SIGKILL), termination_deadline="2026-01-01T12:00:00Z")),
        (Exit.PEER_LOST, "Pod p1 was deleted.", True)),
    "what the backend deletes after a failure is not its cause": (
        (pod(0, Exit.CRASHED, time=2.0), replace(pod(1, SIGKILL), termination_deadline="2026-01-01T12:00:00Z")),
        (Exit.CRASHED, "Pod p0: own words", False)),
    "a pod that was rejected is named although another one waits": (
        (failed(0), pod(1, lost="OutOfcpu: Pod was rejected")),
        (Exit.PEER_LOST, "The cluster removed pod p1: OutOfcpu: Pod was rejected.", True)),
}  # fmt: skip
"""Pods; exit code and message of the cause, and whether the next run is free."""


@pytest.mark.parametrize("case", CASES)
def test_the_cause_of_a_failed_run(case: str) -> None:
    pods, expected = CASES[case]
    found = root_cause(pods)
    assert found is not None
    assert (found.exit_code, found.message, found.free) == expected


def test_a_run_whose_pods_have_not_failed_has_no_cause() -> None:
    assert root_cause((pod(1, Exit.OK), pod(0))) is None
