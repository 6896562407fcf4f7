"""The tool that finds tests which are not green every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.flake import repeat

GREEN = "def test_it(): pass\n"
EVERY_OTHER_TIME = """
from pathlib import Path
def test_it():
    seen = Path(__file__).with_name("seen")
    seen.touch() if (first := not seen.exists()) else seen.unlink()
    assert first
"""


@pytest.mark.parametrize(
    ("text", "red"),
    [(GREEN, {}), (EVERY_OTHER_TIME, {"test_one::test_it": 1}), ("no Python", {"::test_one": 2})],
    ids=["always green", "red every other time", "not even collected"],
)
def test_each_test_is_counted_that_was_not_green(tmp_path: Path, text: str, red: dict[str, int]) -> None:
    (tmp_path / "test_one.py").write_text(text)
    assert repeat(2, [str(tmp_path), "-c", "/dev/null", "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]) == red
