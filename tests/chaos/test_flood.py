"""Ten times as many malformed objects cost little more memory."""

from __future__ import annotations

import pytest

from bench.figures import resident_mib
from operating.hostile import flooded

GROWTH = 1.5
"""kopf remembers each object that it watches, some kilobytes, until the object is deleted."""


@pytest.mark.timeout(900)
def test_2000_malformed_objects_cost_little_more_memory_than_200(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    with flooded(tmp_path_factory.mktemp("flood")) as flood:
        resident = []
        for first, last in ((0, 200), (200, 2000)):
            beside = flood.add(first, last)
            flood.settle()
            resident.append(resident_mib(flood.operator.pid))
            with capsys.disabled():
                print(f"\n{flood}; {beside}")
        flood.check()
        assert resident[1] <= GROWTH * resident[0]
