"""Digests of the content of a model and of a dataset, which are part of a run's identity (identity.py).

Called by preparation.py in the launcher of each node: nodes compare that of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .adapter_folder import CONFIG, WEIGHTS
from .errors import DataRefused, ModelRefused, RunError, StorageFailed
from .handoff import ADAPTER, DATA, MODEL
from .sources import CONFIGS, TOKENIZER

# Besides the weights, these files define a model: sizes, vocabulary, template.
_SMALL = ("*.json", "*.jinja", "*.model", "*.txt")
_BLOCK = 1 << 16
_BLOCKS = 16
_LONGEST_HEADER = 100_000_000
"""Bytes that safetensors allows; what claims more is no such file."""


def of(model_folder: Path, data_path: Path) -> dict[str, str]:
    """Digests of the content of job.model and job.data, by the names MODEL and DATA.

    Data is read completely. Of a model, the small files are read completely, and of each weight file its size, its
    header and 16 evenly spread blocks of 64 KiB: enough to distinguish two models of the same shape without
    reading 30 GB. Raises ModelRefused and DataRefused for files that cannot be read.
    """
    with _readable(DataRefused, "data", data_path):
        data = _file_fingerprint(data_path)
    with _readable(ModelRefused, "model", model_folder):
        return {MODEL: _model_fingerprint(model_folder), DATA: data}


def of_adapter(folder: Path) -> dict[str, str]:
    """Digest of an adapter that training continues from, under the name ADAPTER. Raises ModelRefused."""
    total = hashlib.sha256()
    with _readable(ModelRefused, "adapter", folder):
        for name in (CONFIG, WEIGHTS):
            _add(total, name, [_file_fingerprint(folder / name).encode()])
    return {ADAPTER: _prefixed(total)}


def require_same_adapter(folder: Path, before: str) -> None:
    """Raises ModelRefused if it no longer has the digest `before`."""
    if of_adapter(folder)[ADAPTER] != before:
        raise ModelRefused(
            f"adapter {folder}: its files changed while it was read; leave them as they are while jobs start, then "
            "start the job again"
        )


def model_has(model_folder: Path, digest: str) -> bool:
    """Whether it is the model that had this digest. Raises StorageFailed if it can no longer be read."""
    with _still_readable(model_folder):
        return _model_fingerprint(model_folder) == digest


def require_unchanged(model_folder: Path, before: str) -> None:
    """Raises ModelRefused if the model no longer has the digest `before`: ranks may have read different files.

    Raises StorageFailed if it can no longer be read.
    """
    if not model_has(model_folder, before):
        raise ModelRefused(
            f"model {model_folder}: its files changed while they were loaded; leave them as they are while jobs "
            "start, then start the job again"
        )


def of_result(model_folder: Path) -> dict[str, str]:
    """Digests, by name, of the files of a model that its result takes texts and number formats from."""
    with _still_readable(model_folder):
        found = (path for pattern in (*CONFIGS, *TOKENIZER) for path in model_folder.glob(pattern))
        texts = {each for path in found for each in (path, *path.rglob("*")) if each.is_file()}
        digests = {str(path.relative_to(model_folder)): _file_fingerprint(path) for path in texts}
        for path in model_folder.glob("*.safetensors"):
            digests[path.name] = _prefixed(hashlib.sha256(b"".join(_sample(path))))
    return digests


def require_same_for_result(model_folder: Path, before: Mapping[str, str]) -> None:
    """Raises ModelRefused, with a file's name, if one is not what it was for `of_result`."""
    after = of_result(model_folder)
    differing = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if differing:
        raise ModelRefused(
            f"model {model_folder}: {differing[0]} changed while the run trained, and the result would have it; "
            "restore the file, or remove it if it is new, and start the job again, which continues from its last "
            "checkpoint"
        )


@contextmanager
def _still_readable(model_folder: Path) -> Iterator[None]:
    try:
        (model_folder / "config.json").stat()  # without its volume, a folder is empty
        yield
    except OSError as error:
        raise StorageFailed(
            f"model {model_folder} can no longer be read: {error.filename}: {error.strerror}; check its volume"
        ) from error


@contextmanager
def _readable(refusal: type[RunError], what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise refusal(
            f"{what} {path} cannot be read: {error.filename}: {error.strerror}; "
            "grant read access to the user that the trainer runs as"
        ) from error


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
        header_end = min(8 + int.from_bytes(length, "little"), size, _LONGEST_HEADER)
        yield stream.read(max(0, header_end - 8))
        step = max(_BLOCK, (size - header_end) // _BLOCKS)
        for start in range(header_end, size, step):
            stream.seek(start)
            yield stream.read(_BLOCK)


def _file_fingerprint(path: Path) -> str:
    with path.open("rb") as stream:
        return _prefixed(hashlib.file_digest(stream, "sha256"))


def _prefixed(total: hashlib._Hash) -> str:
    return f"sha256:{total.hexdigest()}"
