"""Every reason for a bad row, with its exact message."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_data import DatasetRefused, read

USER = '{"role": "user", "content": "hi"}'
YES = '{"role": "assistant", "content": "yes"}'
ONE_PER_LINE = "write one JSON object per line"
EXAMPLES = '{"messages": [...]} or {"messages": [...], "response": "..."}'
NO_IMAGES = "images are not supported, only text models are; remove the image or the row"
ROLES = "system, developer, user, assistant, tool"


def talk(*messages: str, rest: str = "") -> str:
    return f'{{"messages": [{", ".join(messages)}]{rest}}}'


def call(function: str) -> str:
    return f'{{"role": "assistant", "content": null, "tool_calls": [{function}]}}'


LINES = {
    "a broken line": (
        '{"messages": [',
        f"invalid JSON: Expecting value at column 15; {ONE_PER_LINE}",
    ),
    "a line cut inside a string": (
        '{"messages": "ab',
        f"invalid JSON: Unterminated string starting at column 14; {ONE_PER_LINE}",
    ),
    "a file that is one JSON list": ("[1, 2]", f"the line is a list, not an object; {ONE_PER_LINE}"),
    "a line that is a number": ("7", f"the line is a number, not an object; {ONE_PER_LINE}"),
    "a line that is null": ("null", f"the line is null, not an object; {ONE_PER_LINE}"),
    "a key that stands twice": (
        talk('{"role": "user", "role": "assistant", "content": "x"}'),
        "duplicate key 'role' in one object; keep one",
    ),
    "NaN": (talk(YES, rest=', "score": NaN'), "NaN is not a JSON value; write null or remove the key"),
    "minus infinity": (
        talk(YES, rest=', "score": -Infinity'),
        "-Infinity is not a JSON value; write null or remove the key",
    ),
    "a number that overflows": (
        talk(YES, rest=', "score": 1e999'),
        "the number 1e999 is too large; write it as a string",
    ),
    "a number of five thousand digits": (
        talk(YES, rest=f', "id": {"1" * 5000}'),
        "a number has too many digits; write it as a string",
    ),
    "half a surrogate pair": (
        talk(r'{"role": "assistant", "content": "\ud83d"}'),
        (
            r"a \ud800-\udfff escape is a lone surrogate, which is not a character; "
            "write the surrogate pair or the character itself"
        ),
    ),
    "lists that are nested too deeply": ("[" * 100_000, "the JSON is nested too deeply; flatten the row"),
}

COLUMNS = {
    "a row without messages": (
        '{"prompt": "a", "completion": "b"}',
        f"the columns match no dataset format (columns: completion, prompt); write {EXAMPLES}",
    ),
    "an empty object": ("{}", f"the columns match no dataset format (columns: none); write {EXAMPLES}"),
    "messages that are null": (
        '{"messages": null}',
        f"the columns match no dataset format (columns: none); write {EXAMPLES}",
    ),
    "an empty list of messages": (talk(), "messages is empty; write the conversation, or remove the row"),
    "messages that are an object": (
        '{"messages": {}}',
        "messages is an object, not a list; write [...]",
    ),
    "messages in a string that is not JSON": (
        '{"messages": "hello"}',
        "messages is a string with invalid JSON (Expecting value at column 1); write valid JSON in the string",
    ),
    "messages in a string that is an object": (
        '{"messages": "{}"}',
        "messages is an object, not a list; write [...]",
    ),
    "images beside the messages": (talk(YES, rest=', "images": ["a.png"]'), f"images: {NO_IMAGES}"),
    "an image beside the messages": (talk(YES, rest=', "image_url": "a.png"'), f"image_url: {NO_IMAGES}"),
    "retired functions": (
        talk(YES, rest=', "functions": [{}]'),
        "functions is deprecated; write tools",
    ),
    "metadata that is no object": (
        talk(YES, rest=', "metadata": "x"'),
        "metadata is a string, not an object; write {...}",
    ),
    "no assistant at all": (
        talk(USER),
        ("no trainable token: the row has no trained assistant message; add an assistant message, or remove the row"),
    ),
    "only assistants of weight 0": (
        talk(USER, '{"role": "assistant", "content": "x", "weight": 0}'),
        ("no trainable token: the row has no trained assistant message; add an assistant message, or remove the row"),
    ),
    "an answer in two places": (
        talk(USER, YES, rest=', "response": "no"'),
        "messages ends with an assistant message, but the row also has a response; keep one of them",
    ),
    "an empty response": (
        talk(USER, rest=', "response": " "'),
        "response is empty; write the answer, or remove the row",
    ),
    "a response that is a number": (
        talk(USER, rest=', "response": 4'),
        "response is a number, not a string; write it in quotes",
    ),
}

MESSAGES = {
    "a message that is a string": ('"hi"', "messages[0] is a string, not an object; write {...}"),
    "no role": ('{"content": "x"}', f"messages[0].role is missing; write one of {ROLES}"),
    "a role of a number": (
        '{"role": 1, "content": "x"}',
        "messages[0].role is a number, not a string; write it in quotes",
    ),
    "a misspelt role": (
        '{"role": "assistent", "content": "x"}',
        "messages[0].role 'assistent' is unknown; did you mean 'assistant'?",
    ),
    "a role in capitals": (
        '{"role": "User", "content": "x"}',
        "messages[0].role 'User' is unknown; did you mean 'user'?",
    ),
    "an unknown role": (
        '{"role": "banana", "content": "x"}',
        f"messages[0].role 'banana' is unknown; write one of {ROLES}",
    ),
    "the role of another format": (
        '{"role": "gpt", "content": "x"}',
        f"messages[0].role 'gpt' is unknown; write one of {ROLES}",
    ),
    "the retired role function": (
        '{"role": "function", "content": "x"}',
        "messages[0].role 'function' is deprecated; write 'tool'",
    ),
    "a user without content": (
        '{"role": "user"}',
        "messages[0].content is missing; write the user's text",
    ),
    "a tool with null": (
        '{"role": "tool", "content": null}',
        "messages[0].content is missing; write the tool's text",
    ),
    "content of a number": (
        '{"role": "user", "content": 5}',
        "messages[0].content is a number; write a string or a list of text parts",
    ),
    "content of a boolean": (
        '{"role": "user", "content": true}',
        "messages[0].content is a boolean; write a string or a list of text parts",
    ),
    "an assistant without text": (
        '{"role": "assistant", "content": null}',
        ("messages[0] is an assistant message without text or tool_calls; write its text, or set its weight to 0"),
    ),
    "an assistant with white space only": (
        r'{"role": "assistant", "content": " \n"}',
        ("messages[0] is an assistant message without text or tool_calls; write its text, or set its weight to 0"),
    ),
    "an assistant with reasoning only": (
        '{"role": "assistant", "content": "", "reasoning": "hm"}',
        ("messages[0] is an assistant message without text or tool_calls; write its text, or set its weight to 0"),
    ),
    "an image part": (
        '{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}',
        f"messages[0].content[1]: {NO_IMAGES}",
    ),
    "an image part of the other spelling": (
        '{"role": "user", "content": [{"type": "image", "image": "a.png"}]}',
        f"messages[0].content[0]: {NO_IMAGES}",
    ),
    "images of a message": (
        '{"role": "user", "content": "a", "images": ["a.png"]}',
        f"messages[0].images: {NO_IMAGES}",
    ),
    "a part of another kind": (
        '{"role": "user", "content": [{"type": "input_audio"}]}',
        ('messages[0].content[0].type is \'input_audio\'; only {"type": "text", "text": ...} parts are supported'),
    ),
    "a part without a type": (
        '{"role": "user", "content": {"city": "Rome"}}',
        'messages[0].content.type is missing; only {"type": "text", "text": ...} parts are supported',
    ),
    "a part that is a string": (
        '{"role": "user", "content": ["a"]}',
        "messages[0].content[0] is a string, not an object; write {...}",
    ),
    "a text part without text": (
        '{"role": "user", "content": [{"type": "text"}]}',
        "messages[0].content[0].text is null, not a string; write it in quotes",
    ),
    "a weight of a half": (
        '{"role": "assistant", "content": "x", "weight": 0.5}',
        "messages[0].weight is 0.5; write 1 to train the message or 0 to exclude it",
    ),
    "a weight of true": (
        '{"role": "assistant", "content": "x", "weight": true}',
        "messages[0].weight is True; write 1 to train the message or 0 to exclude it",
    ),
    "train as a string": (
        '{"role": "assistant", "content": "x", "train": "no"}',
        "messages[0].train is a string; write true or false",
    ),
    "weight against train": (
        '{"role": "assistant", "content": "x", "train": true, "weight": 0}',
        "messages[0].weight and messages[0].train contradict each other; keep one",
    ),
    "a trained user message": (
        '{"role": "user", "content": "x", "weight": 1}',
        "messages[0]: only assistant messages are trained, not user; remove its weight and train",
    ),
    "two different reasonings": (
        '{"role": "assistant", "content": "x", "reasoning": "a", "reasoning_content": "b"}',
        "messages[0]: reasoning and reasoning_content differ; keep one",
    ),
    "a reasoning of a list": (
        '{"role": "assistant", "content": "x", "reasoning": ["a"]}',
        "messages[0].reasoning is a list, not a string; write it in quotes",
    ),
    "a name of a number": (
        '{"role": "user", "content": "x", "name": 3}',
        "messages[0].name is a number, not a string; write it in quotes",
    ),
    "a tool_call_id of an object": (
        '{"role": "tool", "content": "x", "tool_call_id": {}}',
        "messages[0].tool_call_id is an object, not a string; write it in quotes",
    ),
    "raw_content of a number": (
        '{"role": "assistant", "content": "x", "raw_content": 3}',
        "messages[0].raw_content is a number, not a string; write it in quotes",
    ),
    "a retired function_call": (
        '{"role": "assistant", "content": null, "function_call": {"name": "f"}}',
        "messages[0].function_call is deprecated; write tool_calls",
    ),
    "a user that calls tools": (
        '{"role": "user", "content": "x", "tool_calls": [{"name": "f", "arguments": {}}]}',
        "messages[0].tool_calls is allowed for the role assistant only, not user; correct the role",
    ),
    "tool calls that are an object": (
        '{"role": "assistant", "content": "x", "tool_calls": {}}',
        "messages[0].tool_calls is an object, not a list; write [...]",
    ),
    "a tool call without a name": (
        call('{"arguments": {}}'),
        "messages[0].tool_calls[0].name is missing; write it as a string",
    ),
    "a nested tool call with an empty name": (
        call('{"function": {"name": " ", "arguments": {}}}'),
        "messages[0].tool_calls[0].function.name is empty; write it as a string",
    ),
    "a tool call without arguments": (
        call('{"name": "f"}'),
        "messages[0].tool_calls[0].arguments is missing; write {} for a call without arguments",
    ),
    "arguments of broken JSON": (
        call(r'{"function": {"name": "f", "arguments": "{\"a\": "}}'),
        (
            "messages[0].tool_calls[0].function.arguments is a string with invalid JSON "
            "(Expecting value at column 7); write valid JSON in the string"
        ),
    ),
    "arguments of a JSON list": (
        call('{"name": "f", "arguments": "[1]"}'),
        "messages[0].tool_calls[0].arguments is a list, not an object; write {...}",
    ),
    "arguments with a key twice": (
        call(r'{"name": "f", "arguments": "{\"a\": 1, \"a\": 2}"}'),
        (
            "messages[0].tool_calls[0].arguments is a string with invalid JSON "
            "(duplicate key 'a' in one object); write valid JSON in the string"
        ),
    ),
    "a tool call that is no function": (
        call('{"type": "web_search"}'),
        "messages[0].tool_calls[0].type is 'web_search'; only functions are supported: write 'function'",
    ),
    "a tool call with an id of a number": (
        call('{"name": "f", "arguments": {}, "id": 4}'),
        "messages[0].tool_calls[0].id is a number, not a string; write it in quotes",
    ),
}

TOOLS = {
    "a tool without a name": ("{}", "tools[0].name is missing; write it as a string"),
    "a nested tool without a name": (
        '{"type": "function", "function": {"description": "x"}}',
        "tools[0].function.name is missing; write it as a string",
    ),
    "a description of a number": (
        '{"name": "f", "description": 4}',
        "tools[0].description is a number, not a string; write it in quotes",
    ),
    "parameters of a list": (
        '{"name": "f", "parameters": []}',
        "tools[0].parameters is a list, not an object; write {...}",
    ),
    "a tool that is a string": ('"f"', "tools[0] is a string, not an object; write {...}"),
    "a tool that is no function": (
        '{"type": "web_search", "name": "f"}',
        "tools[0].type is 'web_search'; only functions are supported: write 'function'",
    ),
    "a tool that is declared twice": (
        '{"name": "f"}, {"type": "function", "function": {"name": "f"}}',
        "tools[1] declares 'f' again; keep one",
    ),
}

CASES = {
    **LINES,
    **COLUMNS,
    **{name: (talk(message, YES), reason) for name, (message, reason) in MESSAGES.items()},
    **{name: (talk(USER, YES, rest=f', "tools": [{tool}]'), reason) for name, (tool, reason) in TOOLS.items()},
}


@pytest.mark.parametrize(("line", "reason"), CASES.values(), ids=CASES.keys())
def test_a_bad_row_is_named_with_its_line_its_reason_and_its_remedy(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{talk(USER, YES)}\n{line}\n", "utf-8")
    with pytest.raises(DatasetRefused) as refused:
        read(file)
    assert [str(problem) for problem in refused.value.problems] == [f"line 2: {reason}"]
    assert refused.value.reason == "1 of 2 rows is bad"


def test_bytes_that_are_not_utf8_are_named_by_position(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"messages": []}\n'.replace(b"[", b"\xe9["))
    with pytest.raises(DatasetRefused) as refused:
        read(file)
    wrong = f"byte 0xe9 at position 14 is not UTF-8; save the file as UTF-8 text, {ONE_PER_LINE}"
    assert [str(problem) for problem in refused.value.problems] == [f"line 1: {wrong}"]
