"""One chat template: Jinja in a sandbox, rendering what transformers' `apply_chat_template` renders.

Templates come with the model and are untrusted code: the sandbox restricts them to their input. Two things differ
from transformers on purpose: the date is fixed, because a run that is resumed on another day must see the same
tokens; and `{% generation %}` blocks can write markers, because counting characters during rendering fails inside
macros.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime(2025, 1, 1, 12, tzinfo=UTC)
"""The fixed date for templates."""
START, END = "\ufdd0", "\ufdd1"
"""Markers around a generation block: Unicode noncharacters."""

_FAILURES = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError)
"""What a template can raise while rendering."""
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class TemplateError(ValueError):
    """The template cannot be compiled, or fails on these messages."""


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`, which encloses the text that the assistant generates."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_block"), [], [], body).set_lineno(line)

    def _block(self, caller: Macro) -> str:
        return str(caller())


class _MarkedGeneration(_Generation):
    def _block(self, caller: Macro) -> str:
        return START + str(caller()) + END


def _environment(generation: type[Extension]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise, strftime_now=NOW.strftime)
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in transformers: plain JSON. Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class ChatTemplate:
    """A compiled template. `special_tokens` are variables for it: {"bos_token": "<s>", ...}."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises TemplateError if `source` is not Jinja."""
        self.source = source
        self._special_tokens = dict(special_tokens)
        try:
            self._unmarked = _environment(_Generation).from_string(source)
            self._marked = _environment(_MarkedGeneration).from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(str(error)) from None

    @property
    def has_generation(self) -> bool:
        """Whether it marks the text that the assistant generates."""
        return bool(_GENERATION.search(self.source))

    def references(self, name: str) -> bool:
        """Whether it reads the variable or key `name`."""
        return re.search(rf"\b{name}\b", self.source) is not None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        prompt: bool = False,
        **extra: object,
    ) -> str:
        """The text of these messages; with `prompt`, followed by the opening of an assistant's turn.

        Raises TemplateError if the template fails on the messages.
        """
        return self._render(self._unmarked, messages, tools, prompt, extra)

    def render_marked(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text of these messages, and the half-open character spans of its generation blocks.

        Raises TemplateError, also if the markers cannot be located in the rendered text.
        """
        marked = self._render(self._marked, messages, tools, False, {})
        text, spans = _unmark(marked)
        if text != self.render(messages, tools):
            raise TemplateError("its generation blocks cannot be located in the text it renders")
        return text, spans

    def _render(
        self,
        template: jinja2.Template,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        prompt: bool,
        extra: Mapping[str, object],
    ) -> str:
        names = {**self._special_tokens, **extra, "documents": None, "add_generation_prompt": prompt}
        try:
            return template.render(messages=messages, tools=tools or None, **names)
        except _FAILURES as error:
            raise TemplateError(str(error)) from None


def _unmark(marked: str) -> tuple[str, list[tuple[int, int]]]:
    pieces = re.split(f"([{START}{END}])", marked)
    text, spans, open_at = "", [], None
    for piece in pieces:
        if piece == START:
            open_at = len(text)
        elif piece == END:
            if open_at is None:
                raise TemplateError("its generation blocks overlap")
            spans.append((open_at, len(text)))
            open_at = None
        else:
            text += piece
    return text, spans
