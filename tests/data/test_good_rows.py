"""Every way of writing a row that is accepted, and the row that comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_data import Dataset, Message, Role, Row, ToolCall, read

HI = {"role": "user", "content": "hi"}
YES = {"role": "assistant", "content": "yes"}
FLAT = {"name": "f", "description": "does f", "parameters": {"type": "object"}}
NESTED = {"type": "function", "function": FLAT}


def message(role: Role, content: str | None, **more: Any) -> Message:
    return Message(role, content, more.pop("trainable", role is Role.ASSISTANT), **more)


USER = message(Role.USER, "hi")
ANSWER = message(Role.ASSISTANT, "yes")
CALLS = message(Role.ASSISTANT, None, tool_calls=(ToolCall("f", {"a": [1, 2.5, None]}, "c1"),))


def read_one(folder: Path, *rows: dict[str, Any]) -> Dataset:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return read(file)


MESSAGES: dict[str, tuple[list[Any], tuple[Message, ...]]] = {
    "a question and its answer": ([HI, YES], (USER, ANSWER)),
    "a system and a developer message": (
        [{"role": "system", "content": ""}, {"role": "developer", "content": "d"}, YES],
        (message(Role.SYSTEM, ""), message(Role.DEVELOPER, "d"), ANSWER),
    ),
    "content as text parts": (
        [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}, YES],
        (USER, ANSWER),
    ),
    "content as a single part": (
        [{"role": "user", "content": {"type": "text", "text": "hi"}}, YES],
        (USER, ANSWER),
    ),
    "a turn after the last answer": ([HI, YES, HI], (USER, ANSWER, USER)),
    "an answer of weight 0 before one that is trained": (
        [{**YES, "weight": 0}, HI, {**YES, "weight": 1}],
        (message(Role.ASSISTANT, "yes", trainable=False), USER, ANSWER),
    ),
    "an answer with train: false": (
        [{**YES, "train": False}, {**YES, "train": True}],
        (message(Role.ASSISTANT, "yes", trainable=False), ANSWER),
    ),
    "an empty answer of weight 0": (
        [{"role": "assistant", "content": "", "weight": 0.0}, YES],
        (message(Role.ASSISTANT, "", trainable=False), ANSWER),
    ),
    "a user of weight 0": ([{**HI, "weight": 0}, YES], (USER, ANSWER)),
    "reasoning": ([HI, {**YES, "reasoning": "hm"}], (USER, message(Role.ASSISTANT, "yes", reasoning="hm"))),
    "reasoning under two names": (
        [{**YES, "reasoning_content": "hm", "thinking": "hm"}],
        (message(Role.ASSISTANT, "yes", reasoning="hm"),),
    ),
    "a name": ([{**HI, "name": "Ann"}, YES], (message(Role.USER, "hi", name="Ann"), ANSWER)),
    "keys that are null": (
        [{**HI, "tool_calls": None, "weight": None, "images": None}, YES],
        (USER, ANSWER),
    ),
    "a tool call with arguments in a string": (
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "f", "arguments": '{"a": [1, 2.5, null]}'},
                    }
                ],
            }
        ],
        (CALLS,),
    ),
    "a tool call with arguments as an object, flat": (
        [{"role": "assistant", "tool_calls": [{"id": "c1", "name": "f", "arguments": {"a": [1, 2.5, None]}}]}],
        (CALLS,),
    ),
    "the result of a tool call, its id a number": (
        [{"role": "tool", "content": "12", "tool_call_id": 7}, YES],
        (message(Role.TOOL, "12", tool_call_id="7"), ANSWER),
    ),
}


@pytest.mark.parametrize(("messages", "expected"), MESSAGES.values(), ids=MESSAGES.keys())
def test_messages_are_accepted(tmp_path: Path, messages: list[Any], expected: tuple[Message, ...]) -> None:
    assert read_one(tmp_path, {"messages": messages}).rows == (Row(1, expected, ()),)


def test_messages_may_stand_in_a_string(tmp_path: Path) -> None:
    row = {"messages": json.dumps([HI, YES]), "tools": json.dumps([FLAT])}
    assert read_one(tmp_path, row).rows == (Row(1, (USER, ANSWER), (NESTED,)),)


def test_the_answer_may_stand_beside_the_messages(tmp_path: Path) -> None:
    assert read_one(tmp_path, {"messages": [HI], "response": "yes"}).rows == (Row(1, (USER, ANSWER), ()),)


def test_a_null_response_is_no_response(tmp_path: Path) -> None:
    assert read_one(tmp_path, {"messages": [HI, YES], "response": None}).rows == (Row(1, (USER, ANSWER), ()),)


@pytest.mark.parametrize("tool", [FLAT, NESTED, {**FLAT, "type": "function"}], ids=["flat", "nested", "typed"])
def test_a_tool_comes_out_nested_however_it_is_written(tmp_path: Path, tool: dict[str, Any]) -> None:
    assert read_one(tmp_path, {"messages": [HI, YES], "tools": [tool]}).rows[0].tools == (NESTED,)


def test_columns_that_training_does_not_use_are_named_and_counted(tmp_path: Path) -> None:
    row = {
        "messages": [HI, {**YES, "raw_content": "y"}],
        "id": 3,
        "images": [],
        "metadata": {"a": 1},
        "score": None,
    }
    dataset = read_one(tmp_path, row, {"messages": [{**HI, "refusal": None}, YES], "id": 4})
    assert dataset.ignored_columns == {"messages[].raw_content": 1, "id": 2, "images": 1, "metadata": 1}
