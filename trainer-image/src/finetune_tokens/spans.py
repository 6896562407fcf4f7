"""Which characters of a rendered row are trained. Pure. Called by `prepare`.

An assistant message is trained from the end of the generation prompt to its end-of-turn token, with the context that
the model has at inference: the messages before it, as the template renders them at that point. If a later rendering
starts with the same text, both messages share one sequence, so an ordinary template makes one sequence per row. Some
templates rewrite earlier messages (they strip reasoning, or move the tools); such a row becomes several sequences,
each equal to what the model sees when it answers.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from finetune_data import Message, Role, Row
from finetune_data.problems import InvalidRow

from .conversation import template_messages
from .template import ChatTemplate, TemplateError

Span = tuple[int, int]
"""Half-open range of characters."""

_THINKING_END = "</think>"


@dataclass(frozen=True)
class Rendered:
    """A text to tokenise and its trained spans, in ascending order."""

    text: str
    spans: tuple[Span, ...]


def sequences(row: Row, template: ChatTemplate, turn_ends: Collection[str]) -> list[Rendered]:
    """The texts that train every trainable message of `row` exactly once. Raises InvalidRow.

    `turn_ends` are the texts of tokens that may end a message. White space after one of them is not trained.
    """
    conversation = _Conversation(row, template, turn_ends)
    return conversation.by_blocks() if template.has_generation else conversation.by_prompts()


class _Conversation:
    """One row under one template."""

    def __init__(self, row: Row, template: ChatTemplate, turn_ends: Collection[str]) -> None:
        self._row, self._template = row, template
        self._turn_ends = tuple(turn_ends)
        self._messages = template_messages(row)
        self._trained = [i for i, message in enumerate(row.messages) if message.trainable]

    def by_prompts(self) -> list[Rendered]:
        """Locate messages by rendering the generation prompt before each of them."""
        found: list[Rendered] = []
        for i in reversed(self._trained):
            text = self._render(i + 1)
            start, end = self._prompt_end(i, text), self._turn_end(text)
            self._check_turn(i, text[start:end])
            shared = next((n for n, other in enumerate(found) if other.text.startswith(text[:end])), None)
            if shared is None:
                self._check_context(i, text)
                found.insert(0, Rendered(text, ((start, end),)))
            else:
                found[shared] = Rendered(found[shared].text, ((start, end), *found[shared].spans))
        return found

    def by_blocks(self) -> list[Rendered]:
        """Locate messages by the template's own `{% generation %}` blocks."""
        text, blocks = self._blocks(self._trained[-1])
        spans: list[Span] = []
        for i, own in self._blocks_by_message(blocks).items():
            trimmed = [(start, self._turn_end(text[:end])) for start, end in own]
            self._check_turn(i, "".join(text[start:end] for start, end in trimmed))
            spans += [(start, end) for start, end in trimmed if start < end]
        self._check_context(self._trained[-1], text)
        return [Rendered(text, tuple(spans))]

    def _blocks_by_message(self, blocks: list[Span]) -> dict[int, list[Span]]:
        """The blocks of each trained message: one per assistant message, or else as many as it adds."""
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
            raise _render_failure(f"the row up to messages[{last}]", error) from None

    def _render(self, count: int, *, prompt: bool = False, **extra: object) -> str:
        try:
            return self._template.render(self._messages[:count], self._row.tools, prompt=prompt, **extra)
        except TemplateError as error:
            where = f"the prompt of messages[{count}]" if prompt else f"the row up to messages[{count - 1}]"
            raise _render_failure(where, error) from None

    def _prompt_end(self, i: int, text: str) -> int:
        """Where the trained part of message `i` starts in `text`: after the longest matching generation prompt.

        A template with enable_thinking has two prompts, and the one without thinking includes the empty thinking
        block: a row without reasoning must not train the model to write that block.
        """
        prompts = [self._render(i, prompt=True)]
        if self._template.references("enable_thinking"):
            prompts.append(self._render(i, prompt=True, enable_thinking=False))
        ends = [len(prompt) for prompt in prompts if text.startswith(prompt)]
        if not ends or not self._starts_with_content(i, text[max(ends) :]):
            reason = f"messages[{i}] does not start with the generation prompt of the chat template"
            raise InvalidRow(f"{reason}; enclose the assistant's text in the template in {{% generation %}}")
        return max(ends)

    def _starts_with_content(self, i: int, turn: str) -> bool:
        """Whether `turn` starts with the content of the message. A template without a generation prompt may
        start it with a header, which the model never writes."""
        if self._template.references("add_generation_prompt") or self._row.messages[i].tool_calls:
            return True
        return turn.lstrip().startswith(_visible(self._row.messages[i]))

    def _turn_end(self, text: str) -> int:
        """Where the last turn of `text` ends: after its end-of-turn token, before trailing white space."""
        stripped = text.rstrip()
        return len(stripped) if stripped.endswith(self._turn_ends) else len(text)

    def _check_turn(self, i: int, trained: str) -> None:
        """Refuse a message that the template does not render completely."""
        message = self._row.messages[i]
        if _visible(message) not in trained:
            raise _not_rendered(i, "content")
        if any(call.name not in trained for call in message.tool_calls):
            raise _not_rendered(i, "tool_calls")

    def _check_context(self, last: int, text: str) -> None:
        """Refuse a row with a message that the template omits, as some do for unknown roles."""
        for i, message in enumerate(self._row.messages[:last]):
            if message.role is not Role.TOOL and not _occurs(_visible(message), text):
                raise _not_rendered(i, f"content (role {message.role.value})")


def _render_failure(where: str, error: TemplateError) -> InvalidRow:
    return InvalidRow(f"the chat template fails on {where}: {error}; write the row as the template expects")


def _not_rendered(i: int, what: str) -> InvalidRow:
    return InvalidRow(f"the chat template omits messages[{i}].{what}; write the row as the template expects")


def _visible(message: Message) -> str:
    """What every template renders of a message: its content, without the thinking that some strip."""
    return (message.content or "").rpartition(_THINKING_END)[2].strip()


def _occurs(content: str, text: str) -> bool:
    return content in text or json.dumps(content, ensure_ascii=False)[1:-1] in text
