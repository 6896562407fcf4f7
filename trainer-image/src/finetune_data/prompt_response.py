"""The format `{"messages": [system, user], "response": "..."}`: the answer beside the conversation."""

from __future__ import annotations

from collections import Counter

from . import messages, turns
from .fields import text
from .jsonl import Record
from .problems import BadRow
from .rows import Message, Role, Row

USED = messages.USED | {"response"}


def parse(line: int, record: Record, ignored: Counter[str]) -> Row:
    """The row of one record. Raises BadRow."""
    messages.check_columns(record, USED, ignored)
    conversation = turns.conversation(record["messages"], ignored)
    if conversation[-1].role is Role.ASSISTANT:
        reason = "messages ends with an assistant message and there is a response as well"
        raise BadRow(f"{reason}; keep one of them as the answer")
    answer = text(record["response"], "response")
    if not answer.strip():
        raise BadRow("response is empty; write the answer to learn, or take the row out")
    whole = (*conversation, Message(Role.ASSISTANT, answer, trainable=True))
    return messages.row(line, whole, record.get("tools"))
