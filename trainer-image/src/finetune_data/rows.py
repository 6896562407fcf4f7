"""The dataset after reading: rows of messages, independent of the format of the file.

Created by the formats; `finetune_tokens` renders them with a chat template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .problems import RowProblem

Json = Any
"""A value from `json.loads`. The formats check its structure."""


class Role(StrEnum):
    """Author of a message."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    """The system role in newer chat APIs. Passed on unchanged: the chat template decides."""
    USER = "user"
    ASSISTANT = "assistant"
    """The only role that is trained."""
    TOOL = "tool"
    """The result of a tool call."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One tool call of an assistant."""

    name: str
    arguments: Mapping[str, Json]
    id: str | None


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `content` is None only for an assistant message with tool calls and no text."""

    role: Role
    content: str | None
    trainable: bool
    """True for an assistant message unless the row excludes it; False for every other role."""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation with at least one trainable message.

    Messages after the last trainable one are allowed, but have no effect.
    """

    line: int
    """Line number in the file, from 1."""
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Json], ...]
    """Declarations, normalised to {"type": "function", "function": {"name": ...}}."""


@dataclass(frozen=True)
class Dataset:
    """A dataset that passed all checks."""

    path: str
    rows: tuple[Row, ...]
    row_count: int
    """Rows of the file, bad ones included; blank lines are not rows."""
    problems: tuple[RowProblem, ...]
    """The first skipped rows, each with its reason."""
    problem_count: int
    ignored_columns: Mapping[str, int]
    """Columns that training does not use, with the number of rows or messages that have them."""
