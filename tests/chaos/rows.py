"""One disturbed life from its submission to its deletion, and what it left behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from builders import Json
from finetune_plan.results import PREFIX
from operating.process import OperatorProcess
from operating.proxy import Place, Proxy, place
from operating.team import Team, essence
from testbed.control_plane import ControlPlane
from testbed.watch import wait_for

from . import records
from .disturbances import Disturbance
from .lives import LIVES, node

PATIENCE_S = 90.0
UNFINISHED = ("deleted", "deleted_with_grace")
"""Lives that end before the job does."""
QUOTA = ("pods", "requests.nvidia.com/gpu")
SETTINGS = {"PROGRESS_SECONDS": "10"}
"""Few writes of mere words: they come once in so many seconds."""


@dataclass(frozen=True)
class Row:
    """A disturbance at a write of a life."""

    life: str
    number: int
    """In the reference."""
    at: Place
    write: str
    disturbance: str

    def __str__(self) -> str:
        return f"{self.life}-{self.number:02}-{self.write}-{self.disturbance}"


class NotDisturbed(AssertionError):
    """The life went on without the disturbance: by its writes."""


@dataclass(frozen=True)
class Outcome:
    """What a life came to."""

    status: Json
    """Before the deletion, without times."""
    writes: tuple[str, ...]
    """By the operator, as the audit log has them."""
    created: tuple[str, ...]
    """PyTorchJobs, in order."""
    runs: tuple[str, ...]
    """Beginnings and ends of PyTorchJobs, in order."""
    left: tuple[str, ...]
    """PyTorchJobs and pods after the deletion."""
    results: tuple[str, ...]
    """Annotations of claims that name a result."""
    codes: tuple[int, ...]
    """Exit codes of the operators."""


def places(writes: Sequence[str]) -> dict[Place, str]:
    """What was written, by place."""
    milestones = [write.startswith(("create-", "delete-")) for write in writes]
    return {place(milestones[: n + 1]): write for n, write in enumerate(writes)}


def undisturbed(plane: ControlPlane, ledger: records.Ledger, folder: Path, life: str) -> Outcome:
    """The reference: nobody stands between the operator and the API server."""
    team = _team(plane, life)
    with node(team, life):
        with _operator(plane.cluster.kubeconfig, folder, team, SETTINGS) as operator:
            status = LIVES[life](team) or team.until(lambda s: s.get("completionTime") or life in UNFINISHED)
            code = operator.end()
            written = tuple(map(records.word, records.writes(plane, team.namespace)))
        _delete(team, status)
    return _outcome(plane, ledger, team, status, (code,), written)


def disturbed(
    plane: ControlPlane, ledger: records.Ledger, folder: Path, life: str, lens: Disturbance, reference: Outcome
) -> Outcome:
    """A life with one disturbance. Raises NotDisturbed if it had no such write, and WaitError if it never comes to
    what the reference came to."""
    team, codes = _team(plane, life), []
    settings = SETTINGS | dict(lens.settings)
    with ExitStack() as stack:
        stack.enter_context(node(team, life))
        proxy = stack.enter_context(Proxy(plane.cluster.kubeconfig, folder, lens))
        operator = stack.enter_context(_operator(proxy.kubeconfig, folder, team, settings))
        lens.kill = lambda: operator.signal(signal.SIGKILL)
        played = stack.enter_context(ThreadPoolExecutor(1)).submit(LIVES[life], team)
        if not lens.struck.wait(PATIENCE_S):
            raise NotDisturbed(proxy.writes)
        if lens.kills:
            codes.append(operator.wait_ended(PATIENCE_S))
            operator = stack.enter_context(_operator(proxy.kubeconfig, folder, team, settings))
        status = played.result(2 * PATIENCE_S) or team.until(lambda s: essence(s) == reference.status)
        _delete(team, status)
        lens.calm()
        codes.append(operator.end())
    return _outcome(plane, ledger, team, status, tuple(codes))


def _team(plane: ControlPlane, life: str) -> Team:
    """A namespace with a quota that has room enough."""
    team = Team(plane.cluster.api, plane.cluster.namespace(life.replace("_", "-")), PATIENCE_S)
    metadata, hard = {"name": "quota", "namespace": team.namespace}, dict.fromkeys(QUOTA, "99")
    team.api.create({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": hard}})
    _until_unused(team)
    return team


def _until_unused(team: Team) -> None:
    path, unused = f"/api/v1/namespaces/{team.namespace}/resourcequotas/quota", dict.fromkeys(QUOTA, "0")
    wait_for(team.api, path, lambda quota: quota and quota["status"].get("used") == unused, timeout_s=PATIENCE_S)


def _operator(kubeconfig: Path, folder: Path, team: Team, settings: dict[str, str]) -> OperatorProcess:
    places = {"WATCH_NAMESPACE": team.namespace, "OWN_NAMESPACE": team.namespace}
    return OperatorProcess(kubeconfig, folder, settings | places)


def _delete(team: Team, status: Json) -> None:
    """Delete the job unless it is gone, until nothing is left. Of one that has failed, nothing holds quota before."""
    if status.get("phase") in ("Failed", "Cancelled"):
        _until_unused(team)
    if team.api.find(f"{team.jobs}/sample"):
        team.api.delete(f"{team.jobs}/sample")
    wait_for(team.api, f"{team.jobs}/sample", lambda job: job is None, timeout_s=PATIENCE_S)
    team.until_gone(team.runs)
    team.until_gone(team.pods)
    _until_unused(team)


def _outcome(
    plane: ControlPlane, ledger: records.Ledger, team: Team, status: Json, codes: tuple[int, ...],
    written: tuple[str, ...] = (),
) -> Outcome:  # fmt: skip
    entries = records.writes(plane, team.namespace)
    created = tuple(records.created_runs(entries))
    return Outcome(
        status=essence(status),
        writes=written or tuple(map(records.word, entries)),
        created=created,
        runs=tuple(ledger.runs(team.namespace, len(created))),
        left=tuple(o["metadata"]["name"] for path in (team.runs, team.pods) for o in team.api.items(path)),
        results=tuple(_results(team)),
        codes=codes,
    )


def _results(team: Team) -> Iterator[str]:
    for claim in team.api.items(f"/api/v1/namespaces/{team.namespace}/persistentvolumeclaims"):
        yield from (key for key in claim["metadata"].get("annotations", {}) if key.startswith(PREFIX))


def same(outcome: Outcome, reference: Outcome) -> None:
    """A disturbed life came to what the undisturbed one did."""
    assert outcome.status == reference.status
    assert outcome.created == reference.created, "one PyTorchJob a run"
    assert outcome.runs == reference.runs, "each run began after the one before it had ended"
    assert outcome.left == (), "no orphan"
    assert outcome.results == reference.results
