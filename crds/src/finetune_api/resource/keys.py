"""How a key of the resource is declared: its description, its bounds, and its fate.

Every key has one of three fates, declared where the key is: honoured (something reads it), informational
(accepted, named in status.informational, changes nothing) or refused (known, but not done here, with the
reason). A key that is not declared is refused by name. Nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from .key_table import Fate


@dataclass(frozen=True)
class SpecKey:
    """One declared key: its path, its fate, and why."""

    path: str
    fate: Fate
    because: str
    instead: str
    """The remedy for a value that is not one of the choices; empty for the general one."""
    field: FieldInfo
    model: type[BaseModel] | None
    """The section that the key holds, or that each entry of its list is."""
    is_list: bool


def key(description: str, *, instead: str = "", **bounds: Any) -> Any:
    """An optional key that something reads; `instead` is the remedy for a choice that is not supported yet."""
    field = _field(description, Fate.HONOURED, "", bounds)
    field.json_schema_extra["instead"] = instead
    return field


def informational(description: str, because: str, **bounds: Any) -> Any:
    """An optional key that is accepted and named, and changes nothing; `because` is the reason."""
    return _field(f"{description} Informational: {because}.", Fate.INFORMATIONAL, because, bounds)


def refused(description: str, because: str, **bounds: Any) -> Any:
    """A key that is known and not supported; `because` is the reason the user reads."""
    return _field(f"{description} Refused: {because}.", Fate.REFUSED, because, bounds)


def _field(description: str, fate: Fate, because: str, bounds: dict[str, Any]) -> Any:
    bounds.setdefault("default", None)
    return Field(description=description, json_schema_extra={"fate": fate.value, "because": because}, **bounds)


class _Declared(BaseModel):
    """What a person writes: checked strictly, and unknown keys kept so that they can be named."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        strict=True,
        protected_namespaces=(),
        defer_build=True,
        allow_inf_nan=False,
    )


class Section(_Declared):
    """A section mirrored from the TOML: its own spelling, and the API server keeps unknown keys too."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})


class Native(_Declared):
    """A part that Kubernetes users know: camelCase, and the API server prunes unknown keys."""


def keys(model: type[BaseModel], prefix: str = "spec") -> Iterator[SpecKey]:
    """Every key of `model`, depth first, sections included, list items as `path[]`."""
    for name, child in children(model).items():
        path = f"{prefix}.{name}"
        yield replace(child, path=path)
        if child.model is not None:
            yield from keys(child.model, f"{path}[]" if child.is_list else path)


@cache
def children(model: type[BaseModel]) -> Mapping[str, SpecKey]:
    """The keys of one model by name; their paths are their names."""
    named = ((field.alias or name, field) for name, field in model.model_fields.items())
    return {name: _key(name, field) for name, field in named}


def _key(name: str, field: FieldInfo) -> SpecKey:
    extra = field.json_schema_extra
    assert isinstance(extra, dict), f"{name} declares no fate"
    model, is_list = _model_of(field.annotation)
    fate, because, instead = (str(extra.get(attribute, "")) for attribute in ("fate", "because", "instead"))
    return SpecKey(name, Fate(fate), because, instead, field, model, is_list)


def _model_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The model inside X, X | None, Annotated[X, ...] or tuple[X, ...], and whether it is a list."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _model_of(get_args(annotation)[0])
    if origin in (Union, UnionType):
        [one] = [a for a in get_args(annotation) if a is not NoneType] or [None]
        return _model_of(one)
    if origin is tuple:
        return _model_of(get_args(annotation)[0])[0], True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    return None, False
