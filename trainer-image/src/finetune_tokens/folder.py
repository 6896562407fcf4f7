"""Read what a model's folder says about its tokenizer: special tokens, stop tokens, chat templates.

Called by `ChatTokenizer.load`. The files and their precedence are those that transformers writes and reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .errors import TokenizerRefused

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer, without the truncation, padding and added tokens its file may ask for.

    A template writes its own special tokens; and a post-processor may also cut the spaces off a token's
    offsets, which would hide that it reaches over the edge of a turn.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        remedy = "save it with a fast tokenizer: tokenizer.save_pretrained(folder)"
        raise TokenizerRefused(f"{folder}: there is no tokenizer.json; {remedy}")
    try:
        found = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - what the library raises for every unreadable file
        raise TokenizerRefused(f"{path}: not a tokenizer: {error}; save the model again") from None
    found.no_truncation()
    found.no_padding()
    found.post_processor = None
    return found


def document(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise TokenizerRefused(f"{path}: not JSON: {error}; save the model again") from None
    if not isinstance(found, dict):
        raise TokenizerRefused(f"{path}: not a JSON object; save the model again")
    return found


def special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens by name, as a template may use them."""
    stated = {**document(folder / "special_tokens_map.json"), **config}
    found = {name: _content(stated.get(name)) for name in _SPECIAL}
    return {name: token for name, token in found.items() if token is not None}


def _content(token: Any) -> str | None:
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


def stop_ids(folder: Path, found: Tokenizer, special: Mapping[str, str]) -> frozenset[int]:
    """The tokens that end an answer of this model, by its tokenizer and its generation configuration."""
    stated = document(folder / "generation_config.json").get("eos_token_id")
    ids = set(stated if isinstance(stated, list) else [] if stated is None else [stated])
    if "eos_token" in special:
        ids.add(found.token_to_id(special["eos_token"]))
    return frozenset(ids - {None})


def check_added_tokens(folder: Path, found: Tokenizer, config: Mapping[str, Any]) -> None:
    """Refuses a folder whose two files disagree about the added tokens: ids would differ at inference."""
    for number, token in config.get("added_tokens_decoder", {}).items():
        content = _content(token)
        if content is not None and found.token_to_id(content) != int(number):
            reason = f"tokenizer_config.json gives {content!r} the id {number}, tokenizer.json does not"
            raise TokenizerRefused(f"{folder}: {reason}; save the tokenizer again")


def templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The sources of the chat templates by name. Files come before the entry in tokenizer_config.json."""
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: path.read_text("utf-8") for name, path in files.items()}
    stated = config.get("chat_template")
    if isinstance(stated, str):
        return {"default": stated}
    return {entry["name"]: entry["template"] for entry in stated or []}
