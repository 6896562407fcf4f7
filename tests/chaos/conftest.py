"""Trials run side by side: each starts when collection is over, and its test waits for what it came to.

The rows are made from what an undisturbed life wrote just now, so collecting them starts a control plane.
"""

from __future__ import annotations

from typing import Any

import pytest

from chaos.bed import Bed

BED = pytest.StashKey[Bed]()


def pytest_configure(config: pytest.Config) -> None:
    words = "trial(work, idle=False): work(bed, folder, **params) runs in the background; idle: it mostly waits"
    config.addinivalue_line("markers", words)
    config.stash[BED] = Bed(lambda name: _folders(config).mktemp(name))


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[BED].close()


def _folders(config: pytest.Config) -> pytest.TempPathFactory:
    """What the fixture tmp_path_factory is; rows are made before there are fixtures."""
    found: pytest.TempPathFactory = config._tmp_path_factory  # type: ignore[attr-defined]
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "row" in metafunc.fixturenames:
        metafunc.parametrize("row", list(metafunc.config.stash[BED].rows()), ids=str)


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    for item in session.items:
        mark = item.get_closest_marker("trial")
        if mark and isinstance(item, pytest.Function):
            params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
            session.config.stash[BED].begin(item.nodeid, **mark.kwargs, **params)


@pytest.fixture
def bed(pytestconfig: pytest.Config) -> Bed:
    return pytestconfig.stash[BED]


@pytest.fixture
def outcome(bed: Bed, request: pytest.FixtureRequest) -> Any:
    """What the test's trial came to."""
    return bed.result(request.node.nodeid)
