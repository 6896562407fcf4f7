"""The tokenizer of a chat model: its vocabulary, chat templates and stop tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from finetune_data import Row

from . import folder as files
from .errors import TokenizerRefused
from .template import ChatTemplate, TemplateError


@dataclass(frozen=True)
class ChatTokenizer:
    """Created by `load`, used by `prepare`."""

    tokenizer: Tokenizer
    templates: Mapping[str, ChatTemplate]
    """By name; "default", and sometimes "tool_use" for rows with tools."""
    special_tokens: Mapping[str, str]
    """By name, as in {"eos_token": "</s>"}."""
    stop_ids: frozenset[int]
    """Tokens at which generation stops when this model is served."""

    @classmethod
    def load(cls, folder: str | Path) -> ChatTokenizer:
        """The tokenizer in a model's folder. Raises TokenizerRefused."""
        folder = Path(folder)
        tokenizer = files.tokenizer(folder)
        config = files.document(folder / "tokenizer_config.json")
        files.check_added_tokens(folder, tokenizer, config)
        special = files.special_tokens(folder, config)
        templates = _compiled(folder, files.templates(folder, config), special)
        return cls(tokenizer, templates, special, files.stop_ids(folder, tokenizer, special))

    def template_for(self, row: Row) -> ChatTemplate:
        """The template for a row, chosen as in transformers: tool_use for rows with tools, if it exists."""
        if row.tools and "tool_use" in self.templates:
            return self.templates["tool_use"]
        return self.templates["default"]

    @property
    def added(self) -> list[str]:
        """Texts of the tokens that are matched as a whole, such as <|im_start|>."""
        return [token.content for token in self.tokenizer.get_added_tokens_decoder().values()]

    @property
    def turn_ends(self) -> dict[int, str]:
        """The tokens that may end a turn, id to text: all special tokens, and the stop tokens."""
        added = self.tokenizer.get_added_tokens_decoder()
        ends = {number: token.content for number, token in added.items() if token.special}
        stops = {number: self.tokenizer.id_to_token(number) for number in self.stop_ids}
        return ends | {number: text for number, text in stops.items() if text}

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """The tokens of each text, without added tokens: the template has written all special tokens."""
        return self.tokenizer.encode_batch(list(texts), add_special_tokens=False)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these tokens, special ones included."""
        return self.tokenizer.decode([int(number) for number in ids], skip_special_tokens=False)


def _compiled(folder: Path, sources: Mapping[str, str], special: Mapping[str, str]) -> dict[str, ChatTemplate]:
    if "default" not in sources:
        reason = "no chat template found" if not sources else "no chat template is named default"
        remedy = "add chat_template.jinja, or use an instruction-tuned variant of the model"
        raise TokenizerRefused(f"{folder}: {reason}; {remedy}")
    try:
        return {name: ChatTemplate(source, special) for name, source in sources.items()}
    except TemplateError as error:
        raise TokenizerRefused(f"{folder}: the chat template is not valid Jinja: {error}; correct it") from None
