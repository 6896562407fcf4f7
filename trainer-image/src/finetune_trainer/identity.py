"""Ownership of the output folder: only the same job may resume from its checkpoints.

The identity of a run is a flat document of everything that determines its result: keys of its configuration
(finetune_api.runtime.run_config.IDENTITY), the content of model and data, and the rows of one optimizer step. The
first run writes it; every later start in the same folder compares it, and is refused with the keys that differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from finetune_api.runtime.choices import Precision
from finetune_api.runtime.protocol import CHECKPOINTS, RESULT, RUN_FILE
from finetune_api.runtime.run_config import IDENTITY, LATER, SPEC_KEYS, RunConfig

from .collectives import on_rank_0
from .errors import DataRefused, ModelRefused, OutputRefused, RunError
from .files import storage_errors, write_durable

ROWS_PER_STEP = "rows_per_step"
CONTENT = "content."
"""Prefix of the fingerprints' keys in the identity."""
PRECISION = "precision"
"""The one key of the identity that two keys of a job decide."""
_ABSENT = object()
_LATER = {key: RunConfig.model_fields[key].get_default() for key in LATER}
"""Keys that are left out at these values: runs of versions that did not have them stay resumable."""
_NAMES = {ROWS_PER_STEP: "hyperparameters.global_batch"} | SPEC_KEYS | {PRECISION: "the precision"}
_PRECISIONS = {
    Precision.BF16: "set hyperparameters.parallelism.bf16 to true, without fp16",
    Precision.FP16: "set hyperparameters.parallelism.fp16 to true, without bf16",
    Precision.FP32: "set hyperparameters.parallelism.bf16 to false, without fp16",
}

# Besides the weights, these files define a model: sizes, vocabulary, template.
_SMALL = ("*.json", "*.jinja", "*.model", "*.txt")
_BLOCK = 1 << 16
_BLOCKS = 16


def claim(output: Path, config: RunConfig, fingerprint: Mapping[str, str], rows_per_step: int) -> str:
    """Claim `output` for this run, or verify that it owns it already. Returns the digest, 'sha256:...'.

    Collective: rank 0 reads and writes. Raises OutputRefused if the folder belongs to another run,
    StorageFailed if it cannot be written.
    """
    identity = document(config, fingerprint, rows_per_step)
    return on_rank_0(partial(_claim, output, identity))


def document(config: RunConfig, fingerprint: Mapping[str, str], rows_per_step: int) -> dict[str, Any]:
    """The identity as one flat document: dotted key to JSON value."""
    values = config.model_dump(mode="json")
    keyed = {key: _at(values, key) for key in IDENTITY if _at(values, key) != _LATER.get(key, _ABSENT)}
    content = {CONTENT + name: digest for name, digest in fingerprint.items()}
    return dict(_flat(keyed)) | content | {ROWS_PER_STEP: rows_per_step}


def digest(identity: Mapping[str, Any]) -> str:
    """sha256 over the identity as JSON with sorted keys and without white space."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return _prefixed(hashlib.sha256(canonical.encode()))


def fingerprints(model_folder: Path, data_path: Path) -> dict[str, str]:
    """Digests of the content of job.model and job.data, for `claim`.

    Data is read completely. Of a model, the small files are read completely, and of each weight file its size, its
    header and 16 evenly spread blocks of 64 KiB: enough to distinguish two models of the same shape without
    reading 30 GB. Raises ModelRefused and DataRefused for files that cannot be read.
    """
    with _readable(ModelRefused, "model", model_folder):
        model = _model_fingerprint(model_folder)
    with _readable(DataRefused, "data", data_path):
        return {"model": model, "data": _file_fingerprint(data_path)}


@contextmanager
def _readable(refusal: type[RunError], what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise refusal(
            f"{what} {path} cannot be read: {error.filename}: {error.strerror}; "
            "grant read access to the user that the trainer runs as"
        ) from error


def _claim(output: Path, identity: dict[str, Any]) -> str:
    path = output / RUN_FILE
    with storage_errors(path):
        output.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _compare(output, _read(path), identity)
        else:
            _require_unowned(output)
            text = json.dumps({"digest": digest(identity), "identity": identity}, indent=1, sort_keys=True)
            write_durable(path, text.encode() + b"\n")
    return digest(identity)


def _require_unowned(output: Path) -> None:
    """Refuse checkpoints or a result without run.json: their owner is unknown.

    Other files may stay (lost+found of a new volume, notes, the log of an earlier refusal): they are never
    overwritten.
    """
    unowned = [name for name in (CHECKPOINTS, RESULT) if (output / name).exists()]
    if unowned:
        raise OutputRefused(
            f"output {output} contains {' and '.join(unowned)} but no {RUN_FILE}, so their owner is unknown; "
            "choose another output, or move them away"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        identity = json.loads(path.read_bytes())["identity"]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputRefused(f"{path} is not the identity of a run ({error!r}); choose another output") from error
    if not isinstance(identity, dict):
        raise OutputRefused(f"{path} is not the identity of a run; choose another output")
    return identity


def _compare(output: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    if not differing:
        return
    values = "; ".join(
        f"{_name(key)} was {_format_value(old, key)} and is {_format_value(new, key)} now" for key in differing
    )
    remedies = ", ".join(_remedy(old, key) for key in differing)
    raise OutputRefused(f"output {output} belongs to another job: {values}. Choose another output, or {remedies}")


def _name(key: str) -> str:
    if key.startswith(CONTENT):
        return f"the content of job.{key.removeprefix(CONTENT)}"
    return _NAMES.get(key, key)


def _format_value(identity: Mapping[str, Any], key: str) -> str:
    return json.dumps(identity[key]) if key in identity else "absent"


def _remedy(old: Mapping[str, Any], key: str) -> str:
    if key.startswith(CONTENT):
        return f"restore {_name(key)}"
    if key == PRECISION:
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


def _model_fingerprint(folder: Path) -> str:
    total = hashlib.sha256()
    small = {path for pattern in _SMALL for path in folder.glob(pattern)}
    for path in sorted(small):
        _add(total, path.name, [path.read_bytes()])
    for path in sorted(folder.glob("*.safetensors")):
        _add(total, path.name, _sample(path))
    return _prefixed(total)


def _add(total: hashlib._Hash, name: str, parts: Iterable[bytes]) -> None:
    """Add a file unambiguously: its name and the digest of its content, so that boundaries cannot shift."""
    inner = hashlib.sha256()
    for part in parts:
        inner.update(part)
    total.update(f"{name}\0{inner.hexdigest()}\n".encode())


def _sample(path: Path) -> Iterator[bytes]:
    """Size, header and evenly spread blocks of a safetensors file (length, header, data)."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        yield size.to_bytes(8, "little")
        length = stream.read(8)
        header_end = 8 + int.from_bytes(length, "little")
        yield stream.read(min(header_end, size) - 8)
        step = max(_BLOCK, (size - header_end) // _BLOCKS)
        for start in range(header_end, size, step):
            stream.seek(start)
            yield stream.read(_BLOCK)


def _file_fingerprint(path: Path) -> str:
    with path.open("rb") as stream:
        return _prefixed(hashlib.file_digest(stream, "sha256"))


def _prefixed(total: hashlib._Hash) -> str:
    return f"sha256:{total.hexdigest()}"
