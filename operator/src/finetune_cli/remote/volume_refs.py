"""References of a job to claims and ConfigMaps. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from finetune_api.validation import uris
from finetune_api.validation.predicates import find
from finetune_api.validation.uris import Scheme, Source

VALIDATION, OUTPUT, CACHE = "data.validation_path", "output.uri", "storage.cacheClaim"


def sources(spec: Mapping[str, Any]) -> Iterator[tuple[str, Source]]:
    """Key and source of every URI of the job; invalid URIs are skipped."""
    for key, use in uris.KEYS.items():
        value = find(spec, key)
        if isinstance(value, str):
            with suppress(ValueError):  # validation reports it
                yield key, use.parse(value)


def claims(spec: Mapping[str, Any]) -> dict[str, str]:
    """Claim -> the first key that names it."""
    found: dict[str, str] = {}
    for key, source in sources(spec):
        if source.scheme is Scheme.PVC:
            found.setdefault(source.name, key)
    cache = find(spec, CACHE)
    return found | ({cache: CACHE} if isinstance(cache, str) and cache not in found else {})


def config_maps(spec: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Name and key of a ConfigMap -> the key of the job that names it."""
    return {(s.name, s.path): key for key, s in sources(spec) if s.scheme is Scheme.CONFIG_MAP}
