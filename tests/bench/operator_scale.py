"""How fast and how small the operator is, against a real API server: `make bench-operator`.

Three control planes, one after the other, without the Training Operator: jobs at a pace; a burst served by a bare
kopf handler; the same burst served by the operator, which is then started anew. All share two cores, those who
submit included. The exit code is 1 if a limit is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import aiohttp

from bench import operator_bare as bare
from bench import operator_comparison as comparison
from bench import operator_load as load
from bench.figures import Figure, cpu_seconds, machine, resident_mib
from builders import Json, resource
from finetune_api.codegen import policy
from finetune_api.codegen.crd import crd
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.decide import plan
from finetune_plan.model import CreateRun, Observed
from finetune_plan.settings import PlanSettings
from operating.process import OperatorProcess
from testbed.control_plane import ControlPlane
from testbed.process import Process
from testbed.training_operator import pytorchjob_crd

T = TypeVar("T")

CORES = 2
PER_SECOND = 10.0
MOST_PACED = 300
IDLE_S = 10.0
POLL_S, BUSY = 0.5, 0.2
"""Share of a core that a quiet operator may use, with this being asked for its metrics every so often."""
SETTLED_S = 3.0
"""The operator is quiet when nothing has moved for so long."""
GIVE_UP_S = 1200.0
SETTINGS = {"PROGRESS_SECONDS": "10", "LOG_LEVEL": "info"}
"""As installed: the tests' own settings are quicker."""


@dataclass(frozen=True)
class Burst:
    """What came of a burst. Times are seconds since the first submission."""

    jobs: int
    submitted: float
    served: float
    cpu_server: float
    cpu_handler: float

    @property
    def rate(self) -> float:
        return self.jobs / self.served

    def figures(self, who: str) -> list[Figure]:
        return [
            Figure(f"{who}: all submitted after", self.submitted, "s"),
            Figure(f"{who}: all served after", self.served, "s"),
            Figure(f"{who}: rate", self.rate, "jobs/s"),
            Figure(f"{who}: processor time of API server and etcd", 1000 * self.cpu_server / self.jobs, "ms/job"),
            Figure(f"{who}: processor time of the handler", 1000 * self.cpu_handler / self.jobs, "ms/job"),
        ]


def main() -> int:
    arguments = _arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # the processes that we start inherit it
    print(machine(), flush=True)
    figures = []
    measure = _comparison if arguments.only == "comparison" else _measure
    for figure in measure(arguments.jobs, arguments.quiet):
        figures.append(figure)
        print(figure, flush=True)
    missed = ", ".join(figure.name for figure in figures if figure.missed)
    print(f"{machine()}\n{f'Missed: {missed}.' if missed else 'All limits are kept.'}")
    return int(bool(missed))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs of the burst (10000)")
    parser.add_argument("--only", choices=["comparison"], help="what a resync costs, and nothing else")
    parser.add_argument("--quiet", type=float, default=60, help="seconds of quiet before memory is measured (60)")
    return parser.parse_args()


def _measure(jobs: int, quiet: float) -> Iterator[Figure]:
    yield from _paced(min(MOST_PACED, max(20, jobs // 10)))
    with _control_plane() as plane, _bare_handler(plane) as handler:
        bare = _serve(plane, handler, jobs)
    yield from bare.figures("bare kopf handler")
    with _control_plane() as plane:
        yield from _operator_phase(plane, jobs, quiet, bare)
        yield from comparison.figures(plane, jobs)
        yield from _restart(plane, jobs)


def _comparison(jobs: int, _: float) -> Iterator[Figure]:
    with _control_plane() as plane:
        with _operator(plane) as operator:
            yield from _serve(plane, operator, jobs).figures("operator")
        yield from comparison.figures(plane, jobs)


def _paced(count: int) -> Iterator[Figure]:
    with _control_plane() as plane, _operator(plane):
        found = _ask(plane, lambda session: load.delays(session, count, PER_SECOND))
    points = statistics.quantiles(found, n=100)
    yield Figure(f"delay to the PyTorchJob at {PER_SECOND:g} jobs/s, p50 of {count}", points[49], "s", most=0.5)
    yield Figure(f"delay to the PyTorchJob at {PER_SECOND:g} jobs/s, p99 of {count}", points[98], "s", most=2)


def _operator_phase(plane: ControlPlane, jobs: int, quiet: float, bare: Burst) -> Iterator[Figure]:
    with _operator(plane) as operator:
        time.sleep(IDLE_S)  # what the start has left behind is freed
        idle = resident_mib(operator.pid)
        yield Figure("operator: resident idle", idle, "MiB", most=110)
        burst = _serve(plane, operator, jobs)
        yield from burst.figures("operator")
        yield Figure("operator: rate, of the bare handler's", burst.rate / bare.rate, "x", least=0.5)
        yield Figure("operator: PyTorchJobs", _ask(plane, load.count_runs), "", most=jobs, least=jobs)
        yield Figure("operator: jobs with Accepted=True", _ask(plane, load.count_accepted), "", most=jobs, least=jobs)
        _until_still(operator, quiet)
        grown = 1024 * (resident_mib(operator.pid) - idle) / jobs
        yield Figure(f"operator: resident above idle, {quiet:g} s quiet", grown, "KiB/job", most=40)


def _restart(plane: ControlPlane, jobs: int) -> Iterator[Figure]:
    before = _ask(plane, load.versions)
    begun = time.monotonic()
    with _operator(plane) as operator:
        moved = _until_still(operator, SETTLED_S, least_looks=jobs) - begun
        yield Figure(f"restart with {jobs} jobs: quiet after", moved, "s", most=30)
        _until_still(operator, 2 * float(SETTINGS["PROGRESS_SECONDS"]))  # writes that could wait have waited
        yield Figure("restart: resident", resident_mib(operator.pid), "MiB")
    after = _ask(plane, load.versions)
    yield Figure("restart: jobs written to", len(before.items() ^ after.items()) / 2, "jobs", most=0)


def _serve(plane: ControlPlane, handler: Process, jobs: int) -> Burst:
    """Submit a burst, and return when all jobs are accepted and have their PyTorchJob."""
    server = [plane.processes[name].pid for name in ("etcd", "kube-apiserver")]
    before = cpu_seconds(server), cpu_seconds([handler.pid])
    submitted, served = _ask(plane, lambda session: _submit_and_wait(session, jobs))
    return Burst(jobs, submitted, served, cpu_seconds(server) - before[0], cpu_seconds([handler.pid]) - before[1])


async def _submit_and_wait(session: aiohttp.ClientSession, jobs: int) -> tuple[float, float]:
    begun = time.monotonic()
    await load.submit(session, (f"burst-{number}" for number in range(jobs)))
    submitted = time.monotonic() - begun
    await _until(lambda: load.count_runs(session), jobs)
    await _until(lambda: load.count_accepted(session), jobs)
    return submitted, time.monotonic() - begun


async def _until(count: Callable[[], Awaitable[int]], enough: int) -> None:
    async with asyncio.timeout(GIVE_UP_S):
        while await count() < enough:  # noqa: ASYNC110 - it is the API server that is waited for
            await asyncio.sleep(0.5)


def _until_still(operator: OperatorProcess, seconds: float, least_looks: int = 0) -> float:
    """Wait until the operator has done nothing for so long; the monotonic time when it stopped."""
    last, since, used = _acts(operator), time.monotonic(), cpu_seconds([operator.pid])
    give_up = since + GIVE_UP_S
    while time.monotonic() - since < seconds or last[0] < least_looks:
        assert time.monotonic() < give_up, f"not quiet after {GIVE_UP_S:g} s: {last}"
        time.sleep(POLL_S)
        before, used = used, cpu_seconds([operator.pid])
        if (now := _acts(operator)) != last or used - before > BUSY * POLL_S:
            last, since = now, time.monotonic()
    return since


def _acts(operator: OperatorProcess) -> tuple[float, float]:
    """Looks, and requests about jobs and their children, so far."""
    looks = requests = 0.0
    for line in operator.answer("metrics")[1].splitlines():
        if line.startswith("finetune_operator_reconcile_duration_seconds_count"):
            looks += float(line.split()[-1])
        elif line.startswith("finetune_operator_api_requests_total") and "leases" not in line:
            requests += float(line.split()[-1])
    return looks, requests


@contextmanager
def _control_plane() -> Iterator[ControlPlane]:
    """An API server with our CRD and policy, and the Training Operator's CRD without the Training Operator."""
    with tempfile.TemporaryDirectory() as folder, ControlPlane(Path(folder), crds=[pytorchjob_crd(), crd()]) as plane:
        for manifest in (policy.policy(), policy.binding()):
            plane.cluster.api.apply(manifest)
        yield plane


def _operator(plane: ControlPlane) -> OperatorProcess:
    return OperatorProcess(plane.cluster.kubeconfig, plane.folder, SETTINGS)


def _bare_handler(plane: ControlPlane) -> Process:
    manifest, log = plane.folder / "manifest.json", plane.folder / "bare.log"
    manifest.write_text(json.dumps(_manifest()))
    command = [sys.executable, "-m", "bench.operator_bare", str(plane.cluster.kubeconfig), str(manifest)]
    return Process(command, log, ready=lambda: bare.READY in log.read_text())


def _manifest() -> Json:
    """What the operator would create, with placeholders for what differs from job to job."""
    job = resource(name=bare.NAME)
    job["metadata"] |= {"namespace": load.NAMESPACE, "uid": bare.UID, "generation": 1}
    [action] = plan(Observed(job), PlanSettings(), datetime.now(UTC), BACKEND).actions
    assert isinstance(action, CreateRun)
    return dict(action.manifest)


def _ask(plane: ControlPlane, use: Callable[[aiohttp.ClientSession], Awaitable[T]]) -> T:
    """Ask the API server as those who submit do."""

    async def asked() -> T:
        async with load.connect(load.Server.of(plane.cluster.kubeconfig)) as session:
            return await use(session)

    return asyncio.run(asked())


if __name__ == "__main__":
    sys.exit(main())
