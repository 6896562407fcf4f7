"""The format `{"messages": [...], "tools": [...]}`: one conversation a row, as chat APIs write it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from . import tools, turns
from .fields import listed
from .jsonl import Record, kind
from .problems import BadRow
from .rows import Json, Message, Row

USED = frozenset({"messages", "tools"})
IMAGES = ("images", "image", "image_url")


def parse(line: int, record: Record, ignored: Counter[str]) -> Row:
    """The row of one record. Raises BadRow."""
    check_columns(record, USED, ignored)
    conversation = turns.conversation(record["messages"], ignored)
    return row(line, conversation, record.get("tools"))


def row(line: int, conversation: Sequence[Message], declared: Json) -> Row:
    """The row of these messages and these tools. Raises BadRow if nothing in it is trained."""
    if not any(message.trainable for message in conversation):
        reason = "no trainable token: the row has no assistant message that is trained"
        raise BadRow(f"{reason}; add the answer to learn, or take the row out")
    return Row(line, tuple(conversation), tools.declarations(listed(declared, "tools")))


def check_columns(record: Record, used: frozenset[str], ignored: Counter[str]) -> None:
    """Refuses the columns that would be misread, and counts those that are not used."""
    for key in IMAGES:
        if record.get(key):
            raise BadRow(f"{key}: {turns.NO_IMAGES}")
    if record.get("functions"):
        raise BadRow("functions is the retired form; write tools")
    if not isinstance(record.get("metadata") or {}, dict):
        raise BadRow(f"metadata is {kind(record['metadata'])}, not an object; write {{...}}")
    ignored.update(key for key, value in record.items() if key not in used and value is not None)
