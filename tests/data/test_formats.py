"""The registry of formats: a new format needs an entry and nothing else."""

from __future__ import annotations

from collections import Counter

import pytest

from finetune_data import Message, Role, Row
from finetune_data.formats import FORMATS, Format, parse
from finetune_data.problems import InvalidRow


def question_and_answer(line: int, record: dict[str, str], ignored: Counter[str]) -> Row:
    user = Message(Role.USER, record["question"], trainable=False)
    return Row(line, (user, Message(Role.ASSISTANT, record["answer"], trainable=True)), ())


ADDED = (
    Format(frozenset({"question", "answer"}), '{"question": "...", "answer": "..."}', question_and_answer),
    *FORMATS,
)


def test_a_registered_format_is_recognised_by_its_columns() -> None:
    row = parse(3, {"question": "1 + 1?", "answer": "2"}, Counter(), ADDED)
    assert (row.line, [message.content for message in row.messages]) == (3, ["1 + 1?", "2"])


def test_messages_name_every_registered_format() -> None:
    with pytest.raises(InvalidRow) as refused:
        parse(1, {"text": "x"}, Counter(), ADDED)
    assert str(refused.value) == (
        "the columns match no dataset format (columns: text); write "
        '{"messages": [...]} or {"messages": [...], "response": "..."} or {"question": "...", "answer": "..."}'
    )


@pytest.mark.parametrize("known", FORMATS, ids=lambda known: known.example)
def test_a_format_comes_before_those_with_a_subset_of_its_columns(known: Format) -> None:
    later = FORMATS[FORMATS.index(known) + 1 :]
    assert not any(known.columns < other.columns for other in later)
