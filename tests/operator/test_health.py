"""What shows that a watch missed a change, and what shows that it is dead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from finetune_operator.comparison import LONGEST_PAUSE, SHARE, pause_seconds
from finetune_operator.health import Canary, WatchEvidence
from finetune_operator.identity import Key

A, B = Key("team", "a"), Key("team", "b")


@dataclass(frozen=True)
class Case:
    """A watch has delivered a@5 and b@6; a list of version 10 follows, and then what comes within the grace."""

    listed: dict[Key, int]
    missed: set[Key]
    then: list[tuple[str | None, Key, int]] = field(default_factory=list)


CASES = {
    "what the list shows is what the watch has": Case({A: 5, B: 6}, set()),
    "a list that is older than the watch": Case({A: 4, B: 6}, set()),
    "a newer version, and the stream stands still": Case({A: 9, B: 6}, {A}),
    "a newer version, which comes within the grace": Case({A: 9, B: 6}, set(), [("MODIFIED", A, 9)]),
    "a newer version, and the stream is past it": Case({A: 9, B: 6}, {A}, [("MODIFIED", B, 12)]),
    "a newer version, and the stream lags but moves": Case({A: 9, B: 6}, set(), [("MODIFIED", B, 8)]),
    "a new object, and the stream stands still": Case({A: 5, B: 6, Key("x", "c"): 9}, {Key("x", "c")}),
    "an object that was deleted, and the stream stands still": Case({A: 5}, {B}),
    "an object whose deletion comes within the grace": Case({A: 5}, set(), [("DELETED", B, 9)]),
    "an object that was deleted and created again meanwhile": Case({A: 5}, set(), [("ADDED", B, 12)]),
    "an object that was deleted after the list": Case({A: 9, B: 6}, set(), [("DELETED", A, 12)]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_change_is_missed_if_it_will_not_come(case: Case) -> None:
    watch = WatchEvidence()
    watch.delivered(None, A, 5)
    watch.delivered("ADDED", B, 6)
    behind, since = watch.behind(case.listed, 10), watch.deliveries
    for delivery in case.then:
        watch.delivered(*delivery)
    missed = watch.missed(behind, case.listed, 10, since)
    assert missed == case.missed
    watch.settle(missed, case.listed, 10)
    again = watch.missed(watch.behind(case.listed, 10), case.listed, 10, watch.deliveries)
    assert not again & missed, "it is missed once"


@pytest.mark.parametrize(
    ("lists", "pause"),
    [(0, 30), (3, 30), (3.5, 35), (60, LONGEST_PAUSE)],
    ids=["nothing to list", "a tenth of the usual time", "more than that", "so long that the limit counts"],
)
def test_the_longer_the_lists_take_the_less_often_they_are_compared(lists: float, pause: float) -> None:
    assert pause_seconds(30, lists) == pause
    assert pause_seconds(120, lists) == 120, "never more often than the settings say"
    assert pause == LONGEST_PAUSE or lists <= pause / SHARE


Step = Callable[[WatchEvidence], bool]


def miss(watch: WatchEvidence) -> bool:
    return watch.is_dead(missed=True)


def quiet(watch: WatchEvidence) -> bool:
    return watch.is_dead(missed=False)


def lists(watch: WatchEvidence) -> bool:
    """kopf lists everything again, and no stream speaks."""
    watch.delivered(None, A, watch.deliveries)
    return watch.is_dead(missed=False)


def delivers(watch: WatchEvidence) -> bool:
    watch.delivered("MODIFIED", A, 100 + watch.deliveries)
    return watch.is_dead(missed=False)


JUDGEMENTS: dict[str, tuple[list[Step], bool]] = {
    "a quiet cluster": ([quiet] * 100, False),
    "one accident": ([delivers, miss, delivers], False),
    "an accident now and then": ([miss, delivers] * 10, False),
    "two misses in a row": ([delivers, miss, miss], True),
    "two misses with silence in between": ([miss, quiet, quiet, miss], True),
    "two misses with a list in between": ([miss, lists, miss], True),
}


@pytest.mark.parametrize(("steps", "dead"), JUDGEMENTS.values(), ids=JUDGEMENTS)
def test_a_watch_is_dead_if_it_misses_changes_and_delivers_none(steps: list[Step], *, dead: bool) -> None:
    watch = WatchEvidence()
    assert [step(watch) for step in steps][-1] is dead


@pytest.mark.parametrize(("step", "restarts"), [(quiet, 1), (lists, 1), (delivers, 0)])
def test_a_restart_has_helped_once_the_stream_delivers(step: Step, restarts: int) -> None:
    watch = WatchEvidence()
    watch.restarted()
    step(watch)
    assert watch.restarts == restarts


def test_a_heartbeat_ages_until_it_or_a_later_one_comes_back() -> None:
    now = [0.0]
    canary = Canary(lambda: now[0])
    canary.sent("1")
    now[0] = 30
    canary.sent("2")
    assert canary.age() == 30
    canary.received("1")
    assert canary.age() == 0
    now[0] = 40
    assert canary.age() == 10
    canary.received("2")
    assert canary.age() == 0
