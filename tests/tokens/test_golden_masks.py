"""Golden masks: for each family of templates, which tokens of a conversation are trained, token by token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_tokens import ChatTokenizer
from tokens.families import FAMILIES
from tokens.golden import CASES, GOLDEN, masks


@pytest.mark.parametrize("case", CASES)
def test_the_tokens_trained_are_the_golden_ones(folders: dict[str, Path], case: str) -> None:
    family, record = CASES[case]
    expected = json.loads((GOLDEN / f"{case}.json").read_text("utf-8"))
    assert masks(ChatTokenizer.load(folders[family]), record) == expected


def test_there_is_no_golden_file_without_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(CASES)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_every_golden_mask_trains_a_stop_token_and_no_opening_of_a_turn(path: Path) -> None:
    family = FAMILIES[CASES[path.stem][0]]
    for sequence in json.loads(path.read_text("utf-8")):
        trained = [token for token, flag in sequence if flag]
        assert trained[-1] == family.stop
        openings = set(family.special) - {family.stop}
        assert not openings & set(trained)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_no_golden_mask_trains_a_word_of_the_user(path: Path) -> None:
    for sequence in json.loads(path.read_text("utf-8")):
        trained = "".join(token for token, flag in sequence if flag)
        assert not any(word in trained for word in ("What", "plus", "three", "kind", "brief", "user"))
