"""A row as input of a chat template: plain dictionaries without null values, tool calls nested."""

from __future__ import annotations

from typing import Any

from finetune_data import Message, Row, ToolCall


def template_messages(row: Row) -> list[dict[str, Any]]:
    """The messages of a row, in the form transformers passes to a template."""
    return [_message(message) for message in row.messages]


def _message(message: Message) -> dict[str, Any]:
    found = {
        "thinking": message.reasoning,  # under both names that templates use, as in transformers
        "role": message.role.value,
        "content": message.content,
        "tool_calls": [_call(call) for call in message.tool_calls] or None,
        "tool_call_id": message.tool_call_id,
        "name": message.name,
        "reasoning_content": message.reasoning,
    }
    return {key: value for key, value in found.items() if value is not None}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": dict(call.arguments)}
    named = {} if call.id is None else {"id": call.id}
    return {**named, "type": "function", "function": function}
