"""Regular expressions of others are matched as Python's are, and no longer than their time."""

from __future__ import annotations

import re

import pytest

from finetune_trainer.expressions import Expressions

NAME = "model.layers.0.self_attn.q_proj"
LIKE_PYTHON = [
    "q_proj", r".*\.q_proj", r".*\.[01]\..*_proj", r"^model\.layers\.0\.self_attn\.q_proj",
    r"(.*\.)?(self_attn\.q_proj)", r".*(?<!k)_proj",
    r"(?i).*Q_PROJ", r".*\.(q|v)_proj", "",
    r".*\b0\b.*", r"model\..*?proj$",
]  # fmt: skip


@pytest.mark.parametrize("expression", LIKE_PYTHON)
def test_a_name_matches_as_in_python(expression: str) -> None:
    assert Expressions().matches(expression, NAME) == (re.fullmatch(expression, NAME) is not None)


@pytest.mark.parametrize("expression", ["(", "*", "a{99999999999999999999}", "[z-a]", 400 * "(" + 400 * ")" + "\\"])
def test_what_is_no_expression_is_a_value_error(expression: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Expressions().matches(expression, NAME)


def test_all_that_one_adapter_asks_for_has_one_limit() -> None:
    slow, expressions = "(?:.*?[._]?){20}[A-Z]", Expressions(0.2)
    for _ in range(2):
        with pytest.raises(ValueError, match="it takes too long to match with the names of layers"):
            expressions.matches(slow, NAME)
    assert Expressions(0.2).matches("q_proj", "q_proj")
