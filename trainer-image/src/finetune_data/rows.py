"""What a dataset is after reading: rows of messages, whatever format they came in.

Made by the formats, read by `finetune_tokens`, which hands them to a chat template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .problems import Problem

Json = Any
"""A value as `json.loads` gives it. Its shape is what the format files check."""


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    """What newer chat APIs call the system role. Kept as it is: the chat template decides."""
    USER = "user"
    ASSISTANT = "assistant"
    """The only role that is ever trained."""
    TOOL = "tool"
    """The result of a tool call."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that an assistant makes."""

    name: str
    arguments: Mapping[str, Json]
    id: str | None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` is None only for an assistant that calls tools and says nothing."""

    role: Role
    content: str | None
    trainable: bool
    """True for an assistant's turn unless the row says otherwise; False for every other role."""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation with at least one trainable turn.

    Turns after the last trainable one are legal and useless: nothing is trained there.
    """

    line: int
    """Its place in the file, from 1."""
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Json], ...]
    """Declarations as {"type": "function", "function": {"name": ...}}, whichever way the file wrote them."""


@dataclass(frozen=True)
class Dataset:
    """A file that was read and found fit for training."""

    path: str
    rows: tuple[Row, ...]
    rows_seen: int
    """Rows of the file, good and bad; blank lines are none."""
    problems: tuple[Problem, ...]
    """The first of the skipped rows, each with its reason."""
    problem_count: int
    ignored_columns: Mapping[str, int]
    """Columns that training does not use, and in how many rows or messages each stands."""
