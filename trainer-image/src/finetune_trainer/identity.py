"""Ownership of the output folder: only the same job may resume from its checkpoints.

The identity of a run is a flat document of everything that determines its result: keys of its configuration
(finetune_api.runtime.run_config.IDENTITY), the content of model and data, and the rows of one optimizer step. The
first run writes it; every later start in the same folder compares it, and is refused with the keys that differ. A run
whose model is refused before it has saved anything takes it back.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from finetune_api.runtime.choices import Precision
from finetune_api.runtime.protocol import CHECKPOINTS, REPORT, RESULT, RUN_FILE
from finetune_api.runtime.run_config import IDENTITY, LATER, SPEC_KEYS, RunConfig
from finetune_data import regular

from .collectives import on_rank_0, rank
from .errors import ModelRefused, OutputRefused
from .files import create_durable, storage_errors
from .handoff import ADAPTER, CONTENT, DATA, MODEL
from .publish import read_report

ROWS_PER_STEP = "rows_per_step"
PRECISION = "precision"
"""The one key of the identity that two keys of a job decide."""
_ABSENT = object()
_CONTENTS = {
    f"{CONTENT}{name}": f"the content of {key}"
    for name, key in ((MODEL, "job.model"), (DATA, "job.data"), (ADAPTER, SPEC_KEYS["lora.source"]))
}
_NAMES = {ROWS_PER_STEP: "hyperparameters.global_batch"} | SPEC_KEYS | {PRECISION: "the precision"} | _CONTENTS
_KEY = re.compile(r"[a-z0-9_.]{1,100}")
_LISTED = 20
"""Keys of a refusal, at most."""
_QUOTED = 200
"""Characters of a value in a refusal."""
_PRECISIONS = {
    Precision.BF16: "set hyperparameters.parallelism.bf16 to true, without fp16",
    Precision.FP16: "set hyperparameters.parallelism.fp16 to true, without bf16",
    Precision.FP32: "set hyperparameters.parallelism.bf16 to false, without fp16",
}


def claim(output: Path, identity: Mapping[str, Any]) -> None:
    """Claim `output` for this run, or verify that it owns it already.

    Collective: rank 0 reads and writes. Raises OutputRefused if the folder belongs to another run,
    StorageFailed if it cannot be written.
    """
    on_rank_0(partial(_claim, output, identity))


@contextmanager
def given_up_if_refused(output: Path, identity: Mapping[str, Any]) -> Iterator[None]:
    """A run whose model is refused owns its output no longer, if nothing was saved there.

    It may then be started again with other files.
    """
    try:
        yield
    except ModelRefused:
        if rank() == 0:
            _give_up(output, identity)
        raise


def document(config: RunConfig, fingerprint: Mapping[str, str], rows_per_step: int) -> dict[str, Any]:
    """The identity as one flat document: dotted key to JSON value."""
    values = config.model_dump(mode="json")
    if config.lora is not None:
        values["lora"].pop("token_ids", None)  # they follow from the tokens and the content of the model
    # Left out at these values: runs of versions that did not have the keys stay resumable.
    usual = {key for key in LATER if getattr(config, key) == RunConfig.model_fields[key].get_default()}
    keyed = {key: _at(values, key) for key in IDENTITY if key not in usual}
    if config.lora is not None and config.lora.source:  # whose content decides the rest
        keyed["lora"] = {"source": config.lora.source, "dropout": config.lora.dropout}
    content = {CONTENT + name: digest for name, digest in fingerprint.items()}
    return dict(_flat(keyed)) | content | {ROWS_PER_STEP: rows_per_step}


def digest(identity: Mapping[str, Any]) -> str:
    """sha256 over the identity as JSON with sorted keys and without white space."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def _claim(output: Path, identity: Mapping[str, Any]) -> None:
    path = output / RUN_FILE
    with storage_errors(path):
        output.mkdir(parents=True, exist_ok=True)
        _require_own_checkpoints(output)
        if not path.exists():
            _require_unowned(output)
            text = json.dumps({"digest": digest(identity), "identity": identity}, indent=1, sort_keys=True)
            if create_durable(path, text.encode() + b"\n"):
                return
        _compare(output, _read(path), identity)


def _give_up(output: Path, identity: Mapping[str, Any]) -> None:
    path = output / RUN_FILE
    with storage_errors(path):
        if path.exists() and _read(path) == identity and not _saved(output):
            path.unlink(missing_ok=True)


def _saved(output: Path) -> list[str]:
    return [name for name in (CHECKPOINTS, RESULT) if os.path.lexists(output / name)]


def _require_own_checkpoints(output: Path) -> None:
    if (output / CHECKPOINTS).is_symlink():
        raise OutputRefused(
            f"{output / CHECKPOINTS} is a link, and what it leads to may be checkpoints of another run, which this "
            "one would load and remove; move that folder here in place of the link, or choose another output"
        )


def _require_unowned(output: Path) -> None:
    """Refuse checkpoints, a result or a report of something else without run.json: their owner is unknown.

    Other files may stay (lost+found of a new volume, notes, the log and the report of an earlier refusal): they are
    never overwritten, or ours.
    """
    unowned = _saved(output)
    if os.path.lexists(output / REPORT) and read_report(output) is None:
        unowned.append(REPORT)
    if unowned:
        raise OutputRefused(
            f"output {output} contains {' and '.join(unowned)} but no {RUN_FILE}, so their owner is unknown; "
            "choose another output, or move them away"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        identity = json.loads(regular.content(path))["identity"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise OutputRefused(f"{path} is not the identity of a run ({error!r}); choose another output") from error
    if not isinstance(identity, dict):
        raise OutputRefused(f"{path} is not the identity of a run; choose another output")
    return identity


def _compare(output: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    if not differing:
        return
    named = differing[:_LISTED]
    values = "; ".join(
        f"{_name(key)} was {_format_value(old, key)} and is {_format_value(new, key)} now" for key in named
    )
    remedies = ", ".join(filter(None, (_remedy(old, key) for key in named)))
    raise OutputRefused(f"output {output} belongs to another job: {values}. Choose another output, or {remedies}")


def _name(key: str) -> str:
    """The key as the job spells it. What is no key of a run is quoted: anybody may have written to the file."""
    return _NAMES.get(key) or (key if _KEY.fullmatch(key) else json.dumps(key)[:_QUOTED])


def _format_value(identity: Mapping[str, Any], key: str) -> str:
    return json.dumps(identity[key])[:_QUOTED] if key in identity else "absent"


def _remedy(old: Mapping[str, Any], key: str) -> str:
    """Empty for the content of what was not named: the key that names it has a remedy of its own."""
    if key.startswith(CONTENT):
        return f"restore {_name(key)}" if key in old else ""
    if key == PRECISION and old.get(key) in list(Precision):
        return _PRECISIONS[Precision(old[key])]
    return f"set {_name(key)} back to {_format_value(old, key)}" if key in old else f"remove {_name(key)}"


def _at(values: dict[str, Any], key: str) -> Any:
    value: Any = values
    for part in key.split("."):
        value = value[part]
    return value


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
