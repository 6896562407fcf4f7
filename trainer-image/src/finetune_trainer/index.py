"""The index of a checkpoint: which tensors it holds, and where the bytes of each piece are.

JSON, and no torch here: the index depends on no version of Python or torch, and reading it runs no code. The
bytes of a chunk are its elements in row-major order, little-endian.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

INDEX = "index.json"
SHARD = ".bin"
"""Suffix of the files of tensors."""

Extent = tuple[Annotated[int, Field(ge=0)], ...]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Chunk(_Frozen):
    """A box of a tensor, written by one rank."""

    offsets: Extent
    sizes: Extent
    file: str = Field(pattern=rf"^[a-z0-9-]+\{SHARD}$")
    position: int = Field(ge=0)
    """Bytes before it in the file."""
    length: int = Field(ge=0)
    """Its bytes."""


class StoredTensor(_Frozen):
    """A tensor, in chunks whose elements are as many as its own."""

    dtype: str
    """As torch spells it, without `torch.`: `float32`, `bfloat16`."""
    shape: Extent
    chunks: tuple[Chunk, ...]

    @model_validator(mode="after")
    def _complete(self) -> StoredTensor:
        for chunk in self.chunks:
            if len(chunk.offsets) != len(self.shape) or len(chunk.sizes) != len(self.shape):
                raise ValueError("a chunk and its tensor differ in the number of dimensions")
            if any(o + s > n for o, s, n in zip(chunk.offsets, chunk.sizes, self.shape, strict=True)):
                raise ValueError("a chunk extends beyond its tensor")
        if sum(prod(chunk.sizes) for chunk in self.chunks) != prod(self.shape):
            raise ValueError("the chunks do not cover the tensor")
        return self


class Index(_Frozen):
    """Content of the index file."""

    format: Literal[1] = 1
    tensors: dict[str, StoredTensor]

    def to_json(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, content: bytes) -> Index:
        """Raises ValueError if the content is not an index of this format."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(key) for key in (INDEX, *first["loc"]))
            raise ValueError(f"{where}: {first['msg']}") from error
