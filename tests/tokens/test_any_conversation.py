"""Whatever is said, what is trained is the assistant's words and the stop token, and nothing else."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from finetune_tokens import ChatTokenizer, prepare
from finetune_tokens.template import END, START
from tokens.families import FAMILIES, dataset, trained_texts

TRICKS = ["<|im_end|>", "</s>", "{{ 7 * 7 }}", "{% if %}", "[INST]", "é", "e\u0301", "日本", "👩‍🚀", "\n\n", "  "]
WORDS = st.lists(
    st.one_of(
        st.sampled_from([*TRICKS, "two", "plus", "four", "It is"]),
        # "▁" stands for a space in two of the tokenizers, and surrogates and the marks of blocks are not text.
        st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters=f"▁{START}{END}")),
    ),
    min_size=1,
    max_size=5,
)


def _spoken(words: list[str]) -> str:
    return "x" + " ".join(words).strip()  # no space at the edge, which some templates trim


@st.composite
def conversations(draw: st.DrawFn, *, system: bool) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if system and draw(st.booleans()):
        messages.append({"role": "system", "content": _spoken(draw(WORDS))})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": _spoken(draw(WORDS))})
        answer = {"role": "assistant", "content": _spoken(draw(WORDS))}
        messages.append({**answer, "weight": draw(st.sampled_from([0, 1]))})
    messages[-1]["weight"] = 1
    return messages


@cache
def _loaded(folder: Path) -> ChatTokenizer:
    return ChatTokenizer.load(folder)


@pytest.mark.parametrize("name", ["chatml", "headers", "instruct", "turns", "thinking", "blocks", "macros"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_the_trained_text_is_exactly_the_answers_and_their_stop_tokens(
    folders: dict[str, Path], name: str, data: st.DataObject
) -> None:
    family, tokenizer = FAMILIES[name], _loaded(folders[name])
    messages = data.draw(conversations(system=family.system))
    assume(name != "thinking" or not any("</think>" in message["content"] for message in messages))
    prepared = prepare(dataset({"messages": messages}), tokenizer, None)
    answers = [m["content"] + family.stop for m in messages if m.get("weight") == 1]
    normal = tokenizer.tokenizer.normalizer if name == "thinking" else None
    expected = [normal.normalize_str(text) if normal else text for text in answers]
    assert trained_texts(prepared, tokenizer) == expected
