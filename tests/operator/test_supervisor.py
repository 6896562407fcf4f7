"""No task of the process ends unnoticed: it starts again, or the process exits."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from finetune_operator.supervisor import TASKS, Answer, supervise

OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"


class Task:
    """Fails as often as it has errors, each after some seconds, and then returns."""

    def __init__(self, *errors: BaseException, lasts: float = 0) -> None:
        self.errors, self.lasts, self.now, self.pauses = list(errors), lasts, 0.0, list[float]()

    async def run(self) -> str:
        self.now += self.lasts
        if self.errors:
            raise self.errors.pop(0)
        return "ended"

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def supervised(self, name: str) -> str:
        return asyncio.run(supervise(name, self.run, self.sleep, lambda: self.now))


@pytest.mark.parametrize(
    ("error", "lasts", "pauses"),
    [
        (ValueError("a pod with an odd label"), 0, [1, 2, 4, 8, 16, 30, 30]),
        (asyncio.CancelledError(), 0, [1, 2, 4, 8, 16, 30, 30]),
        (ValueError("now and then"), 3600, [1] * 7),
    ],
    ids=["an error", "a cancellation of what it waited for", "an error after an hour each"],
)
@pytest.mark.parametrize("name", [name for name, answer in TASKS.items() if answer is Answer.RESTART])
def test_a_task_that_serves_jobs_starts_again(
    name: str, error: BaseException, lasts: float, pauses: list[float]
) -> None:
    task = Task(*[error] * len(pauses), lasts=lasts)
    assert task.supervised(name) == "ended"
    assert task.pauses == pauses


@pytest.mark.parametrize("name", [name for name, answer in TASKS.items() if answer is Answer.EXIT])
def test_the_failure_of_what_watches_over_the_rest_ends_the_process(name: str) -> None:
    with pytest.raises(ValueError, match="a bug"):
        Task(ValueError("a bug")).supervised(name)


def test_a_task_that_is_cancelled_ends() -> None:
    async def cancelled() -> bool:
        task = asyncio.create_task(supervise("worker", asyncio.Event().wait))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(cancelled())


def test_the_page_on_operating_states_every_answer() -> None:
    stated = dict(re.findall(r"^\| `?([a-z ]+)`? \| (restart|exit)", OPERATIONS.read_text(), re.MULTILINE))
    assert stated == {name: str(answer) for name, answer in TASKS.items()}
