"""When logs are read, and what comes of it: a node that does not answer costs its own jobs' progress only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count, pairwise

import pytest

from builders import Json
from finetune_api.runtime.report import CheckpointRecord, Record
from finetune_operator.errors import ClusterError, NotFound, Unavailable
from finetune_operator.identity import Key
from finetune_operator.progress import PodLog, ProgressReaders, ReadSchedule, merged
from finetune_operator.settings import Settings
from finetune_plan.model import ObservedPod

INTERVAL = 10.0
TIMEOUT = 5.0


def pod_log(name: str, node: str = "node") -> PodLog:
    return PodLog(Key("team", name), f"{name}-1-worker-0", f"uid-{name}", node)


class World:
    """Readers in virtual time: nodes that hang make a read fail after its time-out, the others answer at once."""

    def __init__(self, readers: int = 16) -> None:
        self.now, self.readers = 0.0, readers
        self.schedule = ReadSchedule(lambda: self.now, lambda _: INTERVAL)
        self.started: list[tuple[float, PodLog]] = []
        self._ends: list[tuple[float, PodLog]] = []

    def run(self, until: float, hangs: Callable[[PodLog], bool]) -> None:
        ends = self._ends
        while True:
            while len(ends) < self.readers and (found := self.schedule.take()):
                self.started.append((self.now, found))
                if hangs(found):
                    ends.append((self.now + TIMEOUT, found))
                else:
                    self.schedule.done(found, self.now, read=True)
            wait = self.schedule.wait_seconds() if len(ends) < self.readers else None
            following = min([at for at, _ in ends] + ([] if wait is None else [self.now + wait]))
            self.now = min(until, following)
            if following > until:
                return
            for at, found in [end for end in ends if end[0] <= self.now]:
                ends.remove((at, found))
                self.schedule.done(found, at - TIMEOUT, read=False, node_failed=True)

    def times(self, source: PodLog) -> list[float]:
        return [at for at, found in self.started if found == source]

    def pauses(self, source: PodLog) -> list[float]:
        """Seconds between reads."""
        return [after - before for before, after in pairwise(self.times(source))]


def test_a_log_is_read_at_once_and_then_at_intervals_and_five_seconds_twice() -> None:
    world = World()
    world.schedule.follow(pod_log("a"))
    assert world.schedule.since_seconds(pod_log("a")) is None
    world.run(25, lambda _: False)
    assert world.times(pod_log("a")) == [0, 10, 20]
    assert world.schedule.since_seconds(pod_log("a")) == world.now - 20 + 5


def test_a_node_that_hangs_is_left_alone_for_longer_and_longer() -> None:
    world = World()
    world.schedule.follow(pod_log("a"))
    world.run(600, lambda _: True)
    assert world.pauses(pod_log("a"))[:6] == [15, 25, 45, 85, 125, 125]
    assert world.schedule.unreadable_nodes() == 1


def test_2_nodes_that_hang_take_4_of_the_readers_at_most_and_nothing_from_other_nodes() -> None:
    world = World(readers=5)
    silent = [pod_log(f"silent-{n}", f"silent-{n % 2}") for n in range(16)]
    fine = [pod_log(f"well-{n}", "well") for n in range(8)]
    for source in [*silent, *fine]:
        world.schedule.follow(source)
    world.run(300, lambda found: found in silent)
    for source in fine:
        assert world.times(source) == [INTERVAL * n for n in range(31)]
    assert sum(found in silent for _, found in world.started) == 2 * (2 + 4), "two at first, then one a back-off"


def test_a_node_that_answers_again_is_read_as_before() -> None:
    world = World()
    for name in "ab":
        world.schedule.follow(pod_log(name))
    world.run(20, lambda _: True)
    world.run(200, lambda _: False)
    assert set(world.pauses(pod_log("a"))[-10:]) == {INTERVAL}
    assert world.schedule.unreadable_nodes() == 0


def begins(schedule: ReadSchedule) -> None:
    schedule.follow(pod_log("new"))


def is_reported_again(schedule: ReadSchedule) -> None:
    schedule.follow(pod_log("a"))


def is_still_abandoned(schedule: ReadSchedule) -> None:
    schedule.follow(pod_log("a"), abandoned=True)


def begins_elsewhere(schedule: ReadSchedule) -> None:
    schedule.follow(pod_log("new", "another"))


@pytest.mark.parametrize(
    ("happens", "alive"),
    [(begins, True), (is_reported_again, True), (is_still_abandoned, False), (begins_elsewhere, False)],
)
def test_a_node_that_reports_a_pod_again_does_not_wait_out_its_back_off(
    happens: Callable[[ReadSchedule], None], alive: bool
) -> None:
    world = World()
    for name in "ab":
        world.schedule.follow(pod_log(name))
    world.run(290, lambda _: True)
    world.schedule.follow(pod_log("a"), abandoned=True)
    assert world.schedule.back_off_seconds("node") > 0
    happens(world.schedule)
    world.run(300, lambda _: False)
    assert world.schedule.unreadable_nodes() == (0 if alive else 1)
    for name in "ab":
        assert (290 in world.times(pod_log(name))) == alive, "a node is alive for all of its logs"


def test_pods_that_begin_on_a_node_that_hangs_cost_one_read_each_and_its_back_off_goes_on() -> None:
    world = World()
    world.schedule.follow(pod_log("a"))
    world.run(200, lambda _: True)
    before = len(world.started)
    for number in range(3):
        world.schedule.follow(pod_log(f"new-{number}"))
        world.run(world.now + 10, lambda _: True)
    assert len(world.started) == before + 3
    assert world.schedule.back_off_seconds("node") > 100, "as long as before, not 10 s"


def test_a_pod_that_is_gone_says_nothing_about_its_node() -> None:
    world = World()
    for name in "ab":
        world.schedule.follow(pod_log(name))
        assert world.schedule.take() == pod_log(name)
    world.schedule.done(pod_log("a"), 0, read=False, node_failed=True)
    world.schedule.done(pod_log("b"), 0, read=False)
    assert world.schedule.back_off_seconds("node") == 10


def test_what_is_followed_no_more_is_read_no_more() -> None:
    world = World()
    world.schedule.follow(pod_log("a"))
    world.schedule.follow(pod_log("a")._replace(pod="a-2-worker-0", uid="uid-2"))
    world.schedule.follow(pod_log("b"))
    world.schedule.forget(pod_log("b").job)
    world.schedule.follow(pod_log("c"))
    world.schedule.keep({pod_log("a").job})
    assert world.schedule.take() == pod_log("a")._replace(pod="a-2-worker-0", uid="uid-2")
    assert world.schedule.take() is None


def test_a_job_is_named_once_when_its_node_could_not_be_read_for_a_minute() -> None:
    world = World()
    world.schedule.follow(pod_log("a"))
    world.schedule.follow(pod_log("b"))
    world.run(50, lambda _: True)
    assert not world.schedule.is_unreadable("node")
    world.run(80, lambda _: True)
    assert world.schedule.is_unreadable("node")
    assert world.schedule.unreported("node") == [pod_log("a"), pod_log("b")]
    assert world.schedule.unreported("node") == []


class Logs:
    """A cluster of which only logs, and jobs, are asked."""

    def __init__(self, *answers: str | ClusterError) -> None:
        self.answers, self.asked = list(answers), list[int | None]()

    async def read_log(self, key: Key, since_seconds: int | None) -> str:
        self.asked.append(since_seconds)
        if not self.answers:
            await asyncio.Event().wait()
        answer = self.answers.pop(0)
        if isinstance(answer, ClusterError):
            raise answer
        return answer

    async def get_job(self, key: Key) -> Json | None:
        return {}


def checkpoint(step: int) -> CheckpointRecord:
    return CheckpointRecord(time=1.0, step=step, seconds=0.5)


POD = ObservedPod("a-1-worker-0", "uid-a", run=1, node_rank=0, phase="Running", node="node")
JOB = Key("team", "a")


def read(cluster: Logs) -> tuple[ProgressReaders, list[Key], list[tuple[PodLog, str]]]:
    """What a few reads come to: also the jobs whose records have changed, and the logs that are unreadable."""
    changed, unreadable = list[Key](), list[tuple[PodLog, str]]()
    clock = count(step=200)  # longer than every pause
    say = lambda found, error: unreadable.append((found, error))  # noqa: E731
    progress = ProgressReaders(cluster, Settings(), lambda: float(next(clock)), changed.append, say)  # type: ignore[arg-type]

    async def play() -> None:
        progress.follow(JOB, POD)
        reader = asyncio.create_task(progress.read())
        while cluster.answers:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.001)
        reader.cancel()

    asyncio.run(play())
    return progress, changed, unreadable


def test_records_stay_until_a_pass_has_taken_them() -> None:
    progress, changed, _ = read(Logs(checkpoint(1).line(), "no record", checkpoint(2).line()))
    assert changed == [JOB, JOB], "a read without a record calls for no pass"
    records = progress.follow(JOB, POD)
    assert records == (checkpoint(2),)
    assert progress.follow(JOB, POD) == records, "the pass that took them may have failed"
    progress.taken(JOB, records)
    assert progress.follow(JOB, POD) == ()


@pytest.mark.parametrize(
    ("error", "failed"), [(Unavailable("no answer"), 1), (NotFound("no such pod"), 0)], ids=["the node", "the pod"]
)
def test_only_a_read_that_the_node_failed_makes_its_other_logs_wait(error: ClusterError, failed: int) -> None:
    progress, changed, _ = read(Logs(error))
    assert (progress.schedule.unreadable_nodes(), changed) == (failed, [])


class Down(Logs):
    async def get_job(self, key: Key) -> Json | None:
        raise Unavailable("no answer")


@pytest.mark.parametrize(("logs", "said"), [(Logs, 1), (Down, 0)], ids=["it does", "it does not"])
def test_a_log_is_called_unreadable_once_while_the_server_itself_answers(logs: type[Logs], said: int) -> None:
    _, _, unreadable = read(logs(*[Unavailable("no answer")] * 8))
    assert unreadable == [(PodLog(JOB, POD.name, POD.uid, POD.node), "no answer")] * said


def test_the_newest_record_of_each_kind_of_two_reads_is_kept() -> None:
    older: tuple[Record, ...] = (checkpoint(1),)
    assert merged(older, (checkpoint(2),)) == (checkpoint(2),)
    assert merged(older, ()) == older
