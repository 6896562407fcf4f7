"""Job files drawn from a seed: mostly legal jobs with odd values, keys, types and texts, in YAML, JSON and TOML."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from api.mutations import mutant
from finetune_api.codegen.schema import structural
from finetune_api.resource.v1alpha1 import Spec
from finetune_cli import kubernetes_yaml

URIS = (
    "hf://", "hf:///", "hf://a/b", "s3:/x", "s3://", "s3:///x", "s3://b/../c", "pvc://c",
    "pvc:///", "pvc://c/../..", "pvc://C_/x", "configmap://", "configmap://a", "configmap://a/b/c", "://", "..", ".",
    "/", "//", "~", "a:b", "ftp://x/y", "https:x", "https://", "oci://x", "org/name@", "a/b/c/d", "-/-", " ", "\n",
    "é/ü", "file://x", "x" * 5000,
)  # fmt: skip
UNREADABLE = ("hf://org", "hf://a/b/c", "hf://a/b@", '"a\\0b"')
"""URIs, as YAML, that nothing can read."""
NUMBERS = (
    float("nan"), float("inf"), -float("inf"), 10**400, -(10**400), 1 << 63, -(1 << 63), 1e308, 5e-324, 0, -0.0, -1,
    0.1, True,
)  # fmt: skip
OTHERS: tuple[Any, ...] = (
    None, "", [], {}, [[]], [None], {"": ""}, {"a": {"b": {"c": []}}}, "null", "true", "1e3", "0x10", "1_000", "08",
    "2026-01-01", "Yes", "=", "<<", "a" * 300, "\ufeff", "\u2028", "'", '"', "${HOME}", "$(A)", "{{x}}", "-1Gi",
    "1e3Gi",
)  # fmt: skip
SCHEMA = structural(Spec)
SUPPORTED: tuple[dict[str, Any], ...] = (
    {"job": {"model": "org/name", "data": "a.jsonl"}, "compute": {"gpu_type": "CPU"}, "training": {"mode": "lora"}},
    {
        "job": {"model": "hf://org/name@main", "data": "pvc://rows/a.jsonl"},
        "compute": {"gpu_type": "H100", "gpu_count": 16, "nodes": 2, "gpus_per_node": 8},
        "data": {"validation_path": "configmap://rows/b.jsonl"},
        "hyperparameters": {"n_epochs": 2, "learning_rate": 8e-6, "parallelism": {"fsdp": True, "bf16": True}},
        "training": {"validation": {"enabled": True, "eval_steps": 20}},
        "network": {"profile": "tcp"},
        "output": {"uri": "pvc://models/out"}, "pods": {"memory": "64Gi", "env": [{"name": "A", "value": "1"}]},
        "storage": {"cacheClaim": "cache"}, "credentials": {"huggingFace": {"secretName": "hf"}},
    },
)  # fmt: skip
"""Jobs that the plan accepts: `render` is reached by way of these."""
ODD = (*URIS, *NUMBERS, *OTHERS)
URI_KEYS = ("job.model", "job.data", "job.data_path", "data.validation_path", "output.uri", "policy.model_name",
            "policy.source", "storage.cacheClaim", "storage.checkpoints")  # fmt: skip


def odd_job(seed: int) -> tuple[str, str]:
    """Suffix of the file and its text."""
    draw = random.Random(seed)
    resource: dict[str, Any] = {
        "apiVersion": "finetune.dev/v1alpha1", "kind": "FinetuneJob", "metadata": {"name": "sample"},
        "spec": copy.deepcopy(draw.choice(SUPPORTED)) if draw.random() < 0.7 else mutant(seed, SCHEMA),
    }  # fmt: skip
    for _ in range(draw.choice((0, 1, 1, 1, 2, 4))):
        draw.choice((_replace, _replace, _put_uri, _put_uri, _nest))(draw, resource)
    suffix = draw.choice((".yaml", ".yaml", ".json", ".toml"))
    text = _text(resource, suffix)
    return suffix, _damaged(draw, text) if draw.random() < 0.1 else text


def _replace(draw: random.Random, resource: dict[str, Any]) -> None:
    parent, key = draw.choice(list(_places(resource)))
    parent[key] = draw.choice(ODD)


def _put_uri(draw: random.Random, resource: dict[str, Any]) -> None:
    at: Any = resource
    *parents, last = ("spec", *draw.choice(URI_KEYS).split("."))
    for parent in parents:
        at = at.setdefault(parent, {}) if isinstance(at, dict) else None
    if isinstance(at, dict):
        at[last] = draw.choice(URIS)


def _nest(draw: random.Random, resource: dict[str, Any]) -> None:
    parent, key = draw.choice(list(_places(resource)))
    parent[key] = draw.choice(([parent[key]], {"a": parent[key]}, [parent[key]] * 3))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index)."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _damaged(draw: random.Random, text: str) -> str:
    """The text with a few characters removed or inserted."""
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(text) + 1)
        text = draw.choice(
            (text[:at] + text[at + 1 :], text[:at] + draw.choice("{}[]:\t&*!|>%@`'\"#,\x00- ") + text[at:])
        )
    return text


def _text(resource: dict[str, Any], suffix: str) -> str:
    if suffix == ".json":
        return json.dumps(resource)
    if suffix == ".toml":
        spec = resource.get("spec")
        return _toml(spec) if isinstance(spec, dict) else "x = 1\n"
    return kubernetes_yaml.dump(resource)


def _toml(spec: dict[str, Any]) -> str:
    return "\n".join(f"{json.dumps(key)} = {_toml_value(value)}" for key, value in spec.items() if value is not None)


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml_value(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(each) for each in value if each is not None) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)
