"""The format `{"messages": [...], "tools": [...]}`: one conversation per row, as in chat APIs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from . import tools, turns
from .fields import as_list
from .jsonl import Record, json_type
from .problems import InvalidRow
from .rows import Json, Message, Row

COLUMNS = frozenset({"messages"})
EXAMPLE = '{"messages": [...]}'
USED = COLUMNS | {"tools"}
IMAGES = ("images", "image", "image_url")


def parse(line: int, record: Record, ignored: Counter[str]) -> Row:
    """The row of one record. Raises InvalidRow."""
    check_columns(record, USED, ignored)
    conversation = turns.conversation(record["messages"], ignored)
    return row(line, conversation, record.get("tools"))


def row(line: int, conversation: Sequence[Message], declared: Json) -> Row:
    """The row with these messages and tools. Raises InvalidRow if no message is trained."""
    if not any(message.trainable for message in conversation):
        reason = "no trainable token: the row has no trained assistant message"
        raise InvalidRow(f"{reason}; add an assistant message, or remove the row")
    return Row(line, tuple(conversation), tools.declarations(as_list(declared, "tools")))


def check_columns(record: Record, used: frozenset[str], ignored: Counter[str]) -> None:
    """Refuse columns with unsupported content, and count unused columns."""
    for key in IMAGES:
        if record.get(key):
            raise InvalidRow(f"{key}: {turns.NO_IMAGES}")
    if record.get("functions"):
        raise InvalidRow("functions is deprecated; write tools")
    if not isinstance(record.get("metadata") or {}, dict):
        raise InvalidRow(f"metadata is {json_type(record['metadata'])}, not an object; write {{...}}")
    ignored.update(key for key, value in record.items() if key not in used and value is not None)
