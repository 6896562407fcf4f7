"""Who gets a worker: jobs that are fine, however many others are in trouble. In virtual time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from finetune_operator.identity import Key
from finetune_operator.workqueue import WorkQueue

WORKERS = 16


def key(name: str) -> Key:
    return Key("team", name)


@dataclass
class World:
    """Workers that take from a queue, and a clock that jumps to whatever happens next."""

    now: float = 0.0
    queue: WorkQueue = field(init=False)
    taken: list[tuple[float, Key]] = field(default_factory=list)
    _ends: list[tuple[float, Key]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue = WorkQueue(lambda: self.now, WORKERS)

    def run(self, until: float, seconds: Callable[[Key], float], fails: Callable[[Key], bool]) -> None:
        while True:
            while len(self._ends) < WORKERS and (found := self.queue.take()):
                self.taken.append((self.now, found))
                heapq.heappush(self._ends, (self.now + seconds(found), found))
            wait = self.queue.wait_seconds() if len(self._ends) < WORKERS else None
            times = [self._ends[0][0]] if self._ends else []
            times += [] if wait is None else [self.now + wait]
            if not times or min(times) > until:
                self.now = until
                return
            self.now = min(times)
            while self._ends and self._ends[0][0] <= self.now:
                _, ended = heapq.heappop(self._ends)
                self.queue.retry(ended) if fails(ended) else self.queue.succeeded(ended)
                self.queue.done(ended)


TROUBLE = {
    "passes that time out": (40.0, True),
    "refusals that come at once": (0.05, True),
    "passes that end well but take long": (10.0, False),
}


@pytest.mark.parametrize(("seconds", "fails"), TROUBLE.values(), ids=TROUBLE)
def test_500_jobs_in_trouble_leave_one_that_is_fine(seconds: float, fails: bool) -> None:
    world = World()

    def trouble(found: Key) -> bool:
        return found.name != "fine"

    def go_on(until: float) -> None:
        world.run(until, lambda found: seconds if trouble(found) else 0.05, lambda found: fails and trouble(found))
        for number in range(500):
            world.queue.add(key(f"trouble-{number}"))

    go_on(0)
    go_on(500 * 40 / WORKERS + 100)  # each has shown that it is in trouble
    waits = []
    for _ in range(100):
        world.queue.add(key("fine"))
        added = world.now
        go_on(world.now + 7)
        waits.append(next(at for at, found in reversed(world.taken) if found.name == "fine") - added)
    print(f"p99 {sorted(waits)[98]:.3f} s, {len(world.taken)} passes")
    assert max(waits) <= 0.05, "no longer than one pass of a job that is fine"


def test_jobs_that_are_fine_take_every_worker_in_order_of_due_time() -> None:
    world = World()
    for number in range(WORKERS + 1):
        world.queue.add(key(f"job-{number:02}"), delay=-number)
    taken = [world.queue.take() for _ in range(WORKERS)]
    assert taken == [key(f"job-{number:02}") for number in range(WORKERS, 0, -1)]


def test_a_pass_that_is_slow_counts_before_it_ends_and_a_quick_one_ends_the_trouble() -> None:
    world = World()
    names = [key(f"slow-{number}") for number in range(WORKERS // 2)]
    for name in names:
        world.queue.add(name)
        assert world.queue.take() == name
    world.queue.add(key("failed"))
    assert world.queue.take() == key("failed")
    world.queue.retry(key("failed"))
    world.queue.done(key("failed"))
    world.now = 3
    assert world.queue.take() is None, "half of the workers have slow passes"
    assert world.queue.wait_seconds() is None, "nobody can say when one ends"
    world.queue.done(names[0])
    assert world.queue.take() == key("failed")
    world.queue.succeeded(key("failed"))
    world.queue.done(key("failed"))
    world.queue.add(names[0])
    assert world.queue.take() == names[0]
    world.queue.add(key("failed"))
    assert world.queue.take() == key("failed"), "it is fine again and needs no place among those in trouble"


def test_errors_in_a_row_wait_longer_each_time_and_a_change_does_not_wait() -> None:
    world = World()
    delays = []
    for _ in range(9):
        world.queue.add(key("job"))
        assert world.queue.take() == key("job")
        delays.append(world.queue.retry(key("job")))
        world.queue.done(key("job"))
    assert all(
        0.8 <= delay / usual <= 1.2 for delay, usual in zip(delays, (0.5, 1, 2, 4, 8, 16, 32, 60, 60), strict=True)
    )
