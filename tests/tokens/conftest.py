"""One folder for each family of chat models, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokens.families import FAMILIES, save


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model's folder by the name of its family."""
    return {name: save(tmp_path_factory.mktemp(name), family) for name, family in FAMILIES.items()}
