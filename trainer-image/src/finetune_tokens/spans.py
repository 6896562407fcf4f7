"""Which characters of a rendered row are trained: the heart of the masks. Pure. Called by `prepare`.

An assistant's turn is trained from where the generation prompt ends to its end-of-turn token, in the context
in which the model would write it: the messages before it, rendered as the template renders them at that
moment. Where a later rendering begins with the same text, both turns share one sequence, so an ordinary
template makes one sequence of a row. Some templates rewrite earlier turns (they strip reasoning, or move the
tools); such a row becomes several sequences, each true to what the model sees when it answers.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from finetune_data import Message, Role, Row
from finetune_data.problems import BadRow

from .conversation import plain
from .template import ChatTemplate, TemplateError

Span = tuple[int, int]
"""Half-open range of characters."""

_THOUGHT_ENDS = "</think>"


@dataclass(frozen=True)
class Rendered:
    """A text to tokenise, and the spans of it that are trained, in ascending order."""

    text: str
    spans: tuple[Span, ...]


def sequences(row: Row, template: ChatTemplate, turn_ends: Collection[str]) -> list[Rendered]:
    """The texts that train every trainable turn of `row` exactly once. Raises BadRow.

    `turn_ends` are the texts of tokens that may end a turn. White space after one of them is not trained.
    """
    conversation = _Conversation(row, template, turn_ends)
    return conversation.by_blocks() if template.has_generation else conversation.by_prompts()


class _Conversation:
    """One row under one template."""

    def __init__(self, row: Row, template: ChatTemplate, turn_ends: Collection[str]) -> None:
        self._row, self._template = row, template
        self._turn_ends = tuple(turn_ends)
        self._messages = plain(row)
        self._trained = [i for i, message in enumerate(row.messages) if message.trainable]

    def by_prompts(self) -> list[Rendered]:
        """Turns located by what the generation prompt before them renders to."""
        found: list[Rendered] = []
        for i in reversed(self._trained):
            text = self._render(i + 1)
            start, end = self._prompt_end(i, text), self._turn_end(text)
            self._check_turn(i, text[start:end])
            home = next((n for n, other in enumerate(found) if other.text.startswith(text[:end])), None)
            if home is None:
                self._check_context(i, text)
                found.insert(0, Rendered(text, ((start, end),)))
            else:
                found[home] = Rendered(found[home].text, ((start, end), *found[home].spans))
        return found

    def by_blocks(self) -> list[Rendered]:
        """Turns located by the template's own `{% generation %}` blocks."""
        text, blocks = self._blocks(self._trained[-1])
        spans: list[Span] = []
        for i, mine in self._owned(blocks).items():
            trimmed = [(start, self._turn_end(text[:end])) for start, end in mine]
            self._check_turn(i, "".join(text[start:end] for start, end in trimmed))
            spans += [(start, end) for start, end in trimmed if start < end]
        self._check_context(self._trained[-1], text)
        return [Rendered(text, tuple(spans))]

    def _owned(self, blocks: list[Span]) -> dict[int, list[Span]]:
        """The blocks of each trained turn: one for each assistant's turn, or else as many as it adds."""
        turns = [
            i
            for i, message in enumerate(self._row.messages[: self._trained[-1] + 1])
            if message.role is Role.ASSISTANT
        ]
        until = list(range(1, len(turns) + 1))
        if len(blocks) != len(turns):
            until = [len(self._blocks(i)[1]) for i in turns]
        owned = {i: blocks[a:b] for i, a, b in zip(turns, [0, *until], until, strict=False)}
        return {i: owned[i] for i in self._trained}

    def _blocks(self, last: int) -> tuple[str, list[Span]]:
        try:
            return self._template.render_marked(self._messages[: last + 1], self._row.tools)
        except TemplateError as error:
            raise _refused(f"the row up to messages[{last}]", error) from None

    def _render(self, count: int, *, prompt: bool = False, **extra: object) -> str:
        try:
            return self._template.render(self._messages[:count], self._row.tools, prompt=prompt, **extra)
        except TemplateError as error:
            where = f"the prompt of messages[{count}]" if prompt else f"the row up to messages[{count - 1}]"
            raise _refused(where, error) from None

    def _prompt_end(self, i: int, text: str) -> int:
        """Where turn `i` of `text` begins to be the model's own: after the longest generation prompt.

        A template with a switch for thinking has two prompts, and the one without thinking writes the empty
        thought itself: a row without a thought must not train the model to write it.
        """
        prompts = [self._render(i, prompt=True)]
        if self._template.mentions("enable_thinking"):
            prompts.append(self._render(i, prompt=True, enable_thinking=False))
        ends = [len(prompt) for prompt in prompts if text.startswith(prompt)]
        if not ends or not self._opens(i, text[max(ends) :]):
            reason = f"messages[{i}] does not begin with the generation prompt of the chat template"
            raise BadRow(f"{reason}; mark the assistant's text in it by {{% generation %}}")
        return max(ends)

    def _opens(self, i: int, turn: str) -> bool:
        """Whether `turn` begins with the model's own words. A template without a generation prompt may
        open it with a header, which the model never writes."""
        if self._template.mentions("add_generation_prompt") or self._row.messages[i].tool_calls:
            return True
        return turn.lstrip().startswith(_visible(self._row.messages[i]))

    def _turn_end(self, text: str) -> int:
        """Where the turn that ends `text` ends: after its end-of-turn token, before white space behind it."""
        stripped = text.rstrip()
        return len(stripped) if stripped.endswith(self._turn_ends) else len(text)

    def _check_turn(self, i: int, trained: str) -> None:
        """Refuses a turn of which the template renders less than the row says."""
        message = self._row.messages[i]
        if _visible(message) not in trained:
            raise _unseen(i, "content")
        if any(call.name not in trained for call in message.tool_calls):
            raise _unseen(i, "tool_calls")

    def _check_context(self, last: int, text: str) -> None:
        """Refuses a row with a message the template leaves out, as some do with roles they do not know."""
        for i, message in enumerate(self._row.messages[:last]):
            if message.role is not Role.TOOL and not _occurs(_visible(message), text):
                raise _unseen(i, f"content (role {message.role.value})")


def _refused(where: str, error: TemplateError) -> BadRow:
    return BadRow(f"the chat template does not render {where}: {error}; write the row as it expects")


def _unseen(i: int, what: str) -> BadRow:
    return BadRow(f"the chat template does not show messages[{i}].{what}; write the row as it expects")


def _visible(message: Message) -> str:
    """What every template shows of a message: its content, without the thought that some strip."""
    return (message.content or "").rpartition(_THOUGHT_ENDS)[2].strip()


def _occurs(content: str, text: str) -> bool:
    return content in text or json.dumps(content, ensure_ascii=False)[1:-1] in text
