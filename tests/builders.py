"""Readable defaults for tests: a job that is fine, changed in one place."""

from __future__ import annotations

import copy
from typing import Any

from finetune_api.validation import check

Json = dict[str, Any]

FINE: Json = {
    "job": {"model": "Qwen/Qwen3-4B", "data": "pvc://rows/train.jsonl"},
    "compute": {"gpu_type": "H100", "gpu_count": 8},
    "output": {"uri": "pvc://models/out"},
}


def resource(changes: Json | None = None, *, name: str = "sample", spec: Json | None = None) -> Json:
    """A FinetuneJob as plain data. `changes` maps dotted paths below spec to values; None removes the key."""
    body = copy.deepcopy(FINE if spec is None else spec)
    for path, value in (changes or {}).items():
        put(body, path, value)
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FinetuneJob", "metadata": {"name": name}, "spec": body}


def job(changes: Json | None = None, *, name: str = "sample") -> Json:
    """The same; it must be fine."""
    data = resource(changes, name=name)
    assert check.problems(data) == []
    return data


def put(body: Json, path: str, value: Any) -> None:
    """Set the value at a dotted path, making the maps on the way."""
    *parents, last = path.split(".")
    for parent in parents:
        body = body.setdefault(parent, {})
    if value is None:
        body.pop(last, None)
    else:
        body[last] = copy.deepcopy(value)
