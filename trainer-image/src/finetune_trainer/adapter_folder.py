"""Where an adapter is, and what its adapter_config.json says of it. Without torch: the launcher reads it, too.

Settings are read as PEFT reads them (https://huggingface.co/docs/peft, LoraConfig). What is neither LoRA nor DoRA is
refused by name: it would be lost.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_api.runtime.choices import LoraBias
from finetune_api.runtime.protocol import MARKER, RESULT, RUN_FILE
from finetune_api.runtime.run_config import Lora
from finetune_data import regular

from . import parameter_files
from .errors import ModelRefused, StorageFailed
from .files import TEMPORARY
from .handoff import CONTENT, MODEL
from .marker import defect, digest_of, read_marker

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_UNCHANGED_BASES = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base as it is; the others train on another one."""
_READ = frozenset({
    "peft_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "use_rslora", "rank_pattern",
    "alpha_pattern", "init_lora_weights", "bias", "use_dora", "modules_to_save", "trainable_token_indices",
    "target_parameters",
})  # fmt: skip
_INERT = frozenset({
    "auto_mapping", "task_type", "inference_mode", "lora_dropout", "target_modules", "exclude_modules",
    "fan_in_fan_out", "layers_to_transform", "layers_pattern", "megatron_config", "megatron_core", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config", "peft_version",
    "ensure_weight_tying",
})  # fmt: skip
"""Keys that say how an adapter was made. Of a layer that stores its weight transposed, its class tells."""
_MAY_PASS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors after which the same files may be readable later."""
_LONGEST = 16 << 20
"""Bytes of adapter_config.json: thousands of times those of one with a pattern for every layer."""
_LISTED, _QUOTED, LONGEST_NAME = 5, 60, 1024
"""Keys of a refusal, and characters of each value and of a name."""


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, StorageFailed) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError) or cause.errno in _MAY_PASS:
            raise
        raise ModelRefused(
            f"adapter {path} cannot be read: {cause.filename}: {cause.strerror}; correct the path, or give read "
            "access to the user that the trainer runs as"
        ) from error


def located(path: Path) -> Path:
    """The folder of the adapter in the output of a run, or `path` itself. Raises ModelRefused for half of one."""
    with _readable(path):
        return _located(path)


def _located(path: Path) -> Path:
    folder = path / RESULT if (path / RUN_FILE).is_file() or (path / RESULT).is_dir() else path
    if not folder.is_dir():
        raise ModelRefused(f"adapter {folder}: no such folder; wait until its run has finished, or correct the path")
    of_run = folder.name == RESULT and (folder.parent / RUN_FILE).is_file()
    if folder.name.startswith(TEMPORARY):
        changed: str | None = "it is being written, or its writer was killed"
    elif of_run or os.path.lexists(folder / MARKER):
        changed = defect(folder) or _edited(folder)
    else:
        changed = None
    if changed:
        raise ModelRefused(
            f"adapter {folder} is not complete as it was published: {changed}; start its run again, or restore the "
            "file"
        )
    return folder


def _edited(folder: Path) -> str | None:
    """The first file that is not the one which was published."""
    marker = read_marker(folder)
    assert marker is not None
    for name, stamp in marker.files.items():
        if not (folder / name).is_file():
            return f"{name} is no file"
        if digest_of(folder / name) != stamp:
            return f"{name} has changed (sha256)"
    return None


def base(found: Mapping[str, Any]) -> tuple[str, str]:
    """Name and revision of the model that `settings` names as the base; empty where they name none."""
    name, revision = (found.get(key) for key in ("base_model_name_or_path", "revision"))
    return printable(name or ""), printable(revision or "")


def printable(text: object) -> str:
    """For a message; anybody may have written it."""
    return "".join(c for c in str(text) if c.isprintable())[:LONGEST_NAME]


def modules_to_save(folder: Path, found: Mapping[str, Any]) -> list[str]:
    """Ends of names of modules that the adapter has in full, of its `settings`. Raises ModelRefused."""
    names = found.get("modules_to_save") or []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ModelRefused(f"adapter {folder}: modules_to_save of {CONFIG} is no list of names; save it again")
    return sorted(set(names))


def token_ids(folder: Path, found: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tokens whose rows an adapter has, of its `settings`, by the end of a module's name: empty for the embedding.

    Raises ModelRefused.
    """
    given = found.get("trainable_token_indices") or {}
    named = given if isinstance(given, dict) else {"": given}
    for ids in named.values():
        if not isinstance(ids, list) or not all(type(each) is int and each >= 0 for each in ids):
            raise ModelRefused(
                f"adapter {folder}: trainable_token_indices of {CONFIG} are no numbers of tokens; save it again"
            )
        if len(ids) != len(set(ids)):
            raise ModelRefused(f"adapter {folder}: trainable_token_indices of {CONFIG} name a token twice")
    return {name: tuple(ids) for name, ids in named.items()}


def ids_of(named: Mapping[str, tuple[int, ...]], module: str, embedding: bool) -> tuple[int, ...]:
    """Those of a module, of `token_ids`. Raises ValueError where two of its keys are of it and differ."""
    found = {ids for end, ids in named.items() if (f".{module}".endswith(f".{end}") if end else embedding)}
    if len(found) > 1:
        raise ValueError("two keys name one module")
    return next(iter(found), ())


def trained_on(folder: Path) -> str | None:
    """Digest of the base, of a result that lies in the output of its run; of others nothing is known."""
    path = folder.parent / RUN_FILE
    if folder.name != RESULT or not path.is_file():
        return None
    try:
        found = json.loads(regular.content(path))["identity"][f"{CONTENT}{MODEL}"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def settings(folder: Path) -> dict[str, Any]:
    """The content of adapter_config.json. Raises ModelRefused for a folder that is no adapter of LoRA or DoRA."""
    with _readable(folder):
        found = method(folder)
        there = (folder / WEIGHTS).is_file()
    if not there:
        raise ModelRefused(
            f"adapter {folder}: {WEIGHTS} is missing; save the adapter again with model.save_pretrained(folder), "
            "which writes safetensors: other formats can run code when they are loaded"
        )
    return found


def method(folder: Path) -> dict[str, Any]:
    """The same without a look at the weights, which may not be there yet."""
    found = _document(folder)
    _require_supported(folder, found)
    return found


def continued(lora: Lora, folder: Path) -> Lora:
    """`lora` with the values of the adapter that it continues from. Raises ModelRefused."""
    found = settings(folder)
    targets, alpha = found.get("target_modules"), found.get("lora_alpha", 8)
    try:
        names = [targets] if isinstance(targets, str) else sorted(targets or ())
        ids = set(token_ids(folder, found).values())
        if len(ids) > 1:
            raise ValueError("trainable_token_indices differ from module to module")
        "".join(names).encode()
        if not math.isfinite(alpha):
            raise ValueError(f"lora_alpha is {alpha}")
        return Lora.model_validate(
            {
                "rank": found.get("r", 8),
                "alpha": alpha,
                "dropout": lora.dropout,
                "target_modules": names,
                "target_parameters": parameter_files.targets(found),
                "rslora": bool(found.get("use_rslora")),
                "dora": bool(found.get("use_dora")),
                "bias": found.get("bias", LoraBias.NONE),
                "modules_to_save": modules_to_save(folder, found),
                "token_ids": next(iter(ids), ()),
                "source": lora.source,
                "folder": str(folder),
            }
        )
    except (ValueError, TypeError, OverflowError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)[:_QUOTED]
        raise ModelRefused(
            f"adapter {folder}: r, lora_alpha, target_modules or trainable_token_indices of {CONFIG} cannot be read: "
            f"{what}; save it again"
        ) from error


def _document(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        if path.stat().st_size > _LONGEST:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        found = json.loads(regular.content(path))
    except FileNotFoundError:
        raise ModelRefused(
            f"{folder} is no adapter: {CONFIG} is missing; name the output of a run, its result, or a folder that "
            "PEFT has written. The result of full finetuning is a whole model already"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"adapter {folder}: {CONFIG} cannot be read: {error}; save it again") from error
    if not isinstance(found, dict):
        raise ModelRefused(f"adapter {folder}: {CONFIG} is not a JSON object; save the adapter again")
    return found


def _require_supported(folder: Path, config: Mapping[str, Any]) -> None:
    wrong = [key for key, value in config.items() if value and key not in _READ | _INERT]
    if config.get("peft_type") != "LORA":
        wrong.append("peft_type")
    if config.get("bias", LoraBias.NONE) not in tuple(LoraBias):
        wrong.append("bias")
    if config.get("init_lora_weights") not in _UNCHANGED_BASES:
        wrong.append("init_lora_weights")
    if wrong:
        named = printable(", ".join(f"{key} {config.get(key)!r}"[: 2 * _QUOTED] for key in wrong[:_LISTED]))
        more = " and more" * (len(wrong) > _LISTED)
        raise ModelRefused(
            f"adapter {folder}: {CONFIG} has {named}{more}, and only LoRA and DoRA are read; load it with PEFT "
            "instead"
        )
