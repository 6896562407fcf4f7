"""Files in the safetensors format, written tensor by tensor: nothing but the tensor at hand is in memory.

The library writes a whole file at once. The format (https://huggingface.co/docs/safetensors) is the length of the
header in 8 bytes, little endian, the header in JSON, and the bytes of the tensors without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import ModelRefused
from .files import Files

SHARD_BYTES = 5_000_000_000
"""Largest size of a file of several, as in transformers; one tensor may be larger."""
_PIECE = 1 << 26
"""Bytes written at a time."""
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0",
    torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True)
class Outline:
    """A tensor without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def weight_files(folder: Path) -> list[Path]:
    """Those that transformers reads of a model: its repository may have the weights in another layout as well."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists() or not index.exists():
        return [single] if single.exists() else []
    return sorted(folder / name for name in set(json.loads(index.read_bytes())["weight_map"].values()))


def outlines(folder: Path) -> dict[str, Outline]:
    """Of all tensors in the weight files of a folder, by name. Raises ModelRefused for a file that is cut off."""
    return outlines_of(weight_files(folder))


def outlines_of(paths: Iterable[Path]) -> dict[str, Outline]:
    """Of all tensors in files, by name. Raises ModelRefused for a file that is cut off."""
    found: dict[str, Outline] = {}
    for path in paths:
        with opened(path) as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
            dtypes = {name: _DTYPES.get(each.get_dtype()) for name, each in slices.items()}
            found |= {n: Outline(dtype, tuple(slices[n].get_shape())) for n, dtype in dtypes.items() if dtype}
    return found


def require_known_formats(paths: Iterable[Path]) -> None:
    """Raises ModelRefused for tensors that `outlines_of` leaves out."""
    for path in paths:
        with opened(path) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                if (dtype := tensors.get_slice(name).get_dtype()) not in _DTYPES:
                    raise ModelRefused(
                        f"{path}: {name} has the format {dtype}, which is not read here; save it again in another"
                    )


def opened(path: Path) -> Any:
    """A file to read tensors from, as a context. Raises ModelRefused if it is cut off."""
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise ModelRefused(
            f"{path} is cut off or no safetensors file ({error}); copy or download it again"
        ) from error


def shards(tensors: Mapping[str, Outline], largest: int = SHARD_BYTES) -> list[dict[str, Outline]]:
    """Tensors in their order, in parts of at most `largest` bytes."""
    parts: list[dict[str, Outline]] = [{}]
    size = 0
    for name, outline in tensors.items():
        if parts[-1] and size + outline.nbytes > largest:
            parts.append({})
            size = 0
        parts[-1][name] = outline
        size += outline.nbytes
    return parts


def written(
    folder: Path, stem: str, parts: Sequence[Mapping[str, Outline]], files: Files
) -> Generator[None, tuple[str, Tensor], None]:
    """Writes `<stem>.safetensors`, or numbered files and their index, into a folder; once started, takes one tensor
    after the other, on the CPU, in the order of `parts`. With the last one all is flushed. Raises OSError.
    """
    names = [f"{stem}.safetensors"]
    if len(parts) > 1:
        names = [f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
    for file, part in zip(names, parts, strict=True):
        with files.create(folder / file) as sink:
            sink.write(_header(part))
            for expected in part.items():
                name, tensor = yield
                assert (name, outline(tensor)) == expected, f"{name} came instead of {expected}"
                content = _bytes(tensor)
                for start in range(0, len(content), _PIECE):
                    sink.write(content[start : start + _PIECE])
                del tensor, content  # or it would be held until there is the next one
        files.fsync(folder / file)
    if len(parts) > 1:
        with files.create(folder / f"{stem}.safetensors.index.json") as sink:
            sink.write(_index(dict(zip(names, parts, strict=True))))
        files.fsync(folder / f"{stem}.safetensors.index.json")
    yield


def write(folder: Path, stem: str, tensors: Mapping[str, Tensor], files: Files) -> None:
    """Write tensors that are all there, on the CPU. Raises OSError."""
    with closing(written(folder, stem, [{n: outline(tensor) for n, tensor in tensors.items()}], files)) as writing:
        next(writing)
        for each in tensors.items():
            writing.send(each)


def outline(tensor: Tensor) -> Outline:
    return Outline(tensor.dtype, tuple(tensor.shape))


def _header(tensors: Mapping[str, Outline]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, each in tensors.items():
        start, end = end, end + each.nbytes
        header[name] = {"dtype": _NAMES[each.dtype], "shape": each.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors are aligned
    return len(text).to_bytes(8, "little") + text


def _index(parts: Mapping[str, Mapping[str, Outline]]) -> bytes:
    size = sum(each.nbytes for part in parts.values() for each in part.values())
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    return json.dumps(index, indent=2, sort_keys=True).encode() + b"\n"


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a tensor on the CPU."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data
