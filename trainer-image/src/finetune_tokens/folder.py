"""Read the tokenizer files of a model's folder: special tokens, stop tokens, chat templates.

Called by `ChatTokenizer.load`. Files and precedence are the same as in transformers.
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
    """The tokenizer, without the truncation, padding and post-processor in its file.

    A template writes the special tokens itself. A post-processor may also trim the spaces off a token's offsets,
    which would hide that the token crosses the boundary of a turn.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        remedy = "save it with a fast tokenizer: tokenizer.save_pretrained(folder)"
        raise TokenizerRefused(f"{folder}: tokenizer.json not found; {remedy}")
    try:
        found = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises plain Exception for an unreadable file
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
    except (ValueError, RecursionError) as error:
        raise TokenizerRefused(f"{path}: not JSON: {error}; save the model again") from None
    if not isinstance(found, dict):
        raise TokenizerRefused(f"{path}: not a JSON object; save the model again")
    return found


def special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens by name, as available to templates."""
    declared = {**document(folder / "special_tokens_map.json"), **config}
    found = {name: _content(declared.get(name)) for name in _SPECIAL}
    return {name: token for name, token in found.items() if token is not None}


def _content(token: Any) -> str | None:
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


def stop_ids(folder: Path, found: Tokenizer, special: Mapping[str, str]) -> frozenset[int]:
    """The tokens that end an answer of this model, from its tokenizer and generation configuration."""
    declared = document(folder / "generation_config.json").get("eos_token_id")
    ids = set(declared if isinstance(declared, list) else [] if declared is None else [declared])
    if "eos_token" in special:
        ids.add(found.token_to_id(special["eos_token"]))
    return frozenset(ids - {None})


def check_added_tokens(folder: Path, found: Tokenizer, config: Mapping[str, Any]) -> None:
    """Refuse a folder whose two files disagree on the added tokens: ids would differ at inference."""
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
    declared = config.get("chat_template")
    if isinstance(declared, str):
        return {"default": declared}
    return {entry["name"]: entry["template"] for entry in declared or []}
