"""Nobody but the backend itself knows which one it is: what is true of one may be false of the next."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_plan.backends import BACKENDS
from finetune_plan.backends.protocol import Backend

ROOT = Path(__file__).parents[2]
SOURCES = ("crds/src", "operator/src", "trainer-image/src")
OWN = ROOT / "operator/src/finetune_plan/backends"


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.kind)
def test_no_module_outside_the_backends_names_a_backend(backend: Backend) -> None:
    files = [path for source in SOURCES for path in (ROOT / source).rglob("*.py") if OWN not in path.parents]
    words = {backend.kind.lower(), backend.plural}
    assert files
    named = {str(path.relative_to(ROOT)) for path in files if any(word in path.read_text().lower() for word in words)}
    assert named == set()
