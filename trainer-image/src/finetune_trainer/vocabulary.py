"""A base whose tokenizer has gained tokens (data.added_tokens).

It is a folder of links to the files of the model, with a tokenizer and, where the weights have too few rows, a
config.json of its own. So everything that reads a model reads this one: weights.py adds the rows. Called by
preparation.py in the launcher, without torch, and by merging.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import AddedToken, Tokenizer

from . import sources
from .errors import ConfigRefused, ModelRefused
from .files import storage_errors

KEY = "data.added_tokens"
_SIZE = "vocab_size"


@dataclass(frozen=True)
class Growth:
    """Rows of embedding and output head, in the files and with those of the new tokens."""

    before: int
    after: int


def growth(folder: Path) -> Growth | None:
    """Of the weights of a folder that was made here; None for all others."""
    path = folder / sources.GROWTH
    return Growth(**json.loads(path.read_bytes())) if path.is_file() else None


def with_tokens(base: Path, folder: Path, texts: Sequence[str]) -> tuple[Path, tuple[int, ...]]:
    """A folder in `folder` whose tokenizer has these tokens too, and their numbers. Raises a RunError."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    for text in texts:
        if why := _why_not(tokenizer, text):
            raise ConfigRefused(f"{KEY}: {json.dumps(text)} {why}, or leave it out")
    taken = set(tokenizer.get_vocab(with_added_tokens=True).values())
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in texts])
    ids = [number for text in texts if (number := tokenizer.token_to_id(text)) is not None]
    assert len(ids) == len(texts), "the tokenizer does not have what was added"
    if taken.intersection(ids):
        raise ModelRefused(
            f"model {base}: tokenizer.json leaves numbers out between its tokens, so that added ones would get those "
            f"of others; leave {KEY} out, or choose another model"
        )
    found = _linked(base, folder, max(ids) + 1)
    _write(found / "tokenizer.json", tokenizer.to_str(pretty=True))
    declared = found / "tokenizer_config.json"
    if declared.is_file():
        settings = json.loads(declared.read_bytes())
        if isinstance(settings.get("added_tokens_decoder"), dict):
            settings["added_tokens_decoder"] |= {str(n): _declared(text) for n, text in zip(ids, texts, strict=True)}
            _write(declared, json.dumps(settings, indent=2, ensure_ascii=False))
    return found, tuple(sorted(ids))


def _why_not(tokenizer: Tokenizer, text: str) -> str:
    """Why a text does not become a token, and what to do; empty if it does."""
    if not text.strip():
        return "is white space, which templates and rows are full of; choose another text"
    numbers = tokenizer.encode(text, add_special_tokens=False).ids
    if len(numbers) == 1 and tokenizer.decode(numbers, skip_special_tokens=False).strip() == text.strip():
        return "is a token of job.model already; name it in training.lora.trainable_tokens instead"
    if tokenizer.token_to_id(text) is not None:
        return "is how the tokenizer of job.model spells another token; choose another text"
    inside = [each.content for each in tokenizer.get_added_tokens_decoder().values() if each.content in text]
    return f"contains {json.dumps(inside[0])}, which is a token already; choose another text" if inside else ""


def _declared(text: str) -> dict[str, Any]:
    off = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word", "special"), False)
    return {"content": text, **off}


@contextmanager
def with_rows(base: Path, rows: int) -> Iterator[Path]:
    """A folder of `base` with `rows` rows; `base` itself if it has as many, or does not say. Raises ModelRefused."""
    if rows <= (size(base) or rows):
        yield base
        return
    with TemporaryDirectory(prefix="finetune-") as folder:
        yield _linked(base, Path(folder), rows)


def next_number(base: Path) -> int:
    """Of the first token that is added to the tokenizer of a model; 0 if it has none of ours."""
    path = base / "tokenizer.json"
    if not path.is_file():
        return 0
    return max(Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).values(), default=-1) + 1


def size(base: Path) -> int | None:
    """Rows of the embedding of a model, by its config.json."""
    found = _language(sources.model_config(base)).get(_SIZE)
    return found if isinstance(found, int) else None


def _language(config: dict[str, Any]) -> dict[str, Any]:
    """What config.json has of the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) and _SIZE in inner else config


def _linked(base: Path, folder: Path, rows: int) -> Path:
    found, before = folder / (base.resolve().name or "model"), size(base)
    if before is None:
        raise ModelRefused(f"model {base}: config.json has no {_SIZE}, so no tokens are added; choose another model")
    with storage_errors(found):
        found.mkdir(parents=True)
        for path in base.iterdir():
            (found / path.name).symlink_to(path.absolute())
    if rows > before:
        config = sources.model_config(base)
        for part in (config, _language(config)):
            if _SIZE in part:
                part[_SIZE] = rows
        _write(found / "config.json", json.dumps(config, indent=2))
        _write(found / sources.GROWTH, json.dumps(asdict(Growth(before, rows))))
    return found


def _write(path: Path, text: str) -> None:
    """In place of a link, not through it."""
    with storage_errors(path):
        path.unlink(missing_ok=True)
        path.write_text(text, encoding="utf-8")
