"""The format `{"messages": [system, user], "response": "..."}`: the answer in a column of its own."""

from __future__ import annotations

from collections import Counter

from . import messages, turns
from .fields import as_text
from .jsonl import Record
from .problems import InvalidRow
from .rows import Message, Role, Row

COLUMNS = messages.COLUMNS | {"response"}
EXAMPLE = '{"messages": [...], "response": "..."}'
USED = messages.USED | COLUMNS


def parse(line: int, record: Record, ignored: Counter[str]) -> Row:
    """The row of one record. Raises InvalidRow."""
    messages.check_columns(record, USED, ignored)
    conversation = turns.conversation(record["messages"], ignored)
    if conversation[-1].role is Role.ASSISTANT:
        reason = "messages ends with an assistant message, but the row also has a response"
        raise InvalidRow(f"{reason}; keep one of them")
    answer = as_text(record["response"], "response")
    if not answer.strip():
        raise InvalidRow("response is empty; write the answer, or remove the row")
    full = (*conversation, Message(Role.ASSISTANT, answer, trainable=True))
    return messages.row(line, full, record.get("tools"))
