"""Jobs with mistakes, drawn from a seed: what people and generators of YAML get wrong.

The schema tells which values nearly fit. Called by test_server.py, which holds the API server's verdict
against ours.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from typing import Any

from finetune_api.resource.aliases import GROUPS
from finetune_api.validation import uris

Json = dict[str, Any]

BASES: tuple[Json, ...] = (
    {"job": {"model": "Qwen/Qwen3-4B", "data": "rows.jsonl"}, "compute": {"gpu_type": "H100"},
     "output": {"ephemeral": True}},
    {
        "algorithm": {"type": "offline", "method": "sft", "variety": "fft"},
        "job": {"model": "Qwen/Qwen3-32B", "data": "pvc://rows/train.jsonl", "poll_seconds": 10},
        "compute": {"gpu_type": "H100", "gpu_count": 16, "nodes": 2, "gpus_per_node": 8},
        "data": {"topology": {"container_count": 16, "total_gpus": 16}, "validation_path": "val.jsonl"},
        "training": {"mode": "full_finetune", "validation": {"enabled": True, "eval_steps": 20}},
        "hyperparameters": {
            "n_epochs": 2, "learning_rate": 8e-6, "global_batch": 64, "per_device_batch": 1, "warmup_ratio": 0.03,
            "parallelism": {
                "fsdp": True, "fsdp_sharding_strategy": "full_shard", "bf16": True, "tensor_parallel_size": 2,
            },
        },
        "tags": {"team": "a", "nested": {"free": [1, None]}},
        "output": {"uri": "pvc://models"}, "lifecycle": {"maxRestarts": 2},
    },
    {
        "policy": {"model_name": "Qwen/Qwen3-8B", "trainer_mode": "lora", "stop_sequences": ["x"]},
        "job": {"data_path": "configmap://rows/train.jsonl"},
        "compute": {"gpu_type": "A100", "gpu_count": 4, "topology": {"type": "single_node", "gpus_for_training": 4}},
        "training": {
            "use_qlora": True, "lora": {"r": 8, "alpha": 16, "dropout": 0.1, "target_modules": ["all-linear"]},
        },
        "hyperparameters": {"lora_rank": 8, "train_kind": "peft", "steps": 100, "lora": {"r": 8}},
        "model_config": {"max_model_len": 4096},
        "output": {"uri": "pvc://models/out"},
        "pods": {
            "env": [{"name": "A", "value": "1"}], "labels": {"team": "a"}, "memory": "64Gi",
            "tolerations": [{"key": "gpu", "operator": "Exists"}], "nodeSelector": {"zone": "b"},
        },
        "credentials": {"huggingFace": {"secretName": "hf"}},
        "queue": {"name": "gpus"}, "network": {"profile": "tcp"}, "suspend": False,
    },
)  # fmt: skip


def mutant(seed: int, schema: Mapping[str, Any]) -> Json:
    """A spec with no, one, two or three changes; `schema` is the structural schema of spec."""
    draw = random.Random(seed)
    spec = copy.deepcopy(draw.choice(BASES))
    for _ in range(draw.choice((0, 1, 1, 1, 2, 2, 3))):
        if spec:
            draw.choice(_CHANGES)(draw, spec, schema)
    return spec


def _drop(draw: random.Random, spec: Json, schema: Mapping[str, Any]) -> None:
    parent, name = draw.choice(_places(spec))
    del parent[name]


def _empty(draw: random.Random, spec: Json, schema: Mapping[str, Any]) -> None:
    parent, name = draw.choice(_places(spec))
    parent[name] = draw.choice((None, "", [], {}))


def _retype(draw: random.Random, spec: Json, schema: Mapping[str, Any]) -> None:
    parent, name = draw.choice(_places(spec))
    parent[name] = draw.choice(("word", "8", 7, -1, 2.5, True, ["a", None], {"a": 1}, [{"name": "x"}], 1e30))


def _misspell(draw: random.Random, spec: Json, schema: Mapping[str, Any]) -> None:
    parent, name = draw.choice(_places(spec))
    if isinstance(name, str):
        i = draw.randrange(len(name))
        parent[draw.choice((name[:i] + name[i + 1 :], f"{name}s", name.replace("_", "-"), name.title())) or "x"] = (
            parent.pop(name)
        )


def _add_unknown(draw: random.Random, spec: Json, schema: Mapping[str, Any]) -> None:
    section = draw.choice(["", *(f"{path}." for path in _sections(schema))])
    _put(spec, f"{section}surprise", draw.choice((1, "x", {})))


def _add_fitting(draw: random.Random, spec: Json, schema: Mapping[str, Any]) -> None:
    path, node = draw.choice(_leaves(schema))
    _put(spec, path, _fitting(draw, node))


def _add_nearly(draw: random.Random, spec: Json, schema: Mapping[str, Any]) -> None:
    path, node = draw.choice(_leaves(schema))
    _put(spec, path, draw.choice(_nearly(node)))


def _contradict(draw: random.Random, spec: Json, schema: Mapping[str, Any]) -> None:
    group = draw.choice([g for g in GROUPS if isinstance(_node(schema, g[0]).get("maximum"), int)])
    _put(spec, draw.choice(group), draw.choice((1, 2, 3, 4, 8, 16, 64, 128)))


def _parallelise(draw: random.Random, spec: Json, schema: Mapping[str, Any]) -> None:
    path = draw.choice(("tensor_parallel_size", "pipeline_parallel_size", "use_deepspeed", "fsdp", "fp16", "bf16"))
    _put(spec, f"hyperparameters.parallelism.{path}", draw.choice((2, 3, 8)) if "size" in path else True)


def _round(draw: random.Random, spec: Json, schema: Mapping[str, Any]) -> None:
    """The keys of the number format, and a value of each key that it depends on."""
    texts = {
        "rounding": ("stochastic", "nearest"),
        "weights": ("fp32", "bf16"),
        "bf16": (True, False),
        "fp16": (True,),
    }
    for path in draw.sample(tuple(texts), 2):
        _put(spec, f"hyperparameters.parallelism.{path}", draw.choice(texts[path]))
    _put(spec, *draw.choice((("compute.gpu_type", "cPu"), ("training.mode", "lora"), ("training.mode", "full"))))


def _address(draw: random.Random, spec: Json, schema: Mapping[str, Any]) -> None:
    texts = ("ftp://x/y", "a:b", "s3://", "pvc://c/../d", "pvc://c", "../rows.jsonl", "hf://a/b@c", "https:x",
             "configmap://m/k", "pvc://c/a b", "pvc://c/é")  # fmt: skip
    _put(spec, draw.choice(tuple(uris.KEYS)), draw.choice(texts))


def _name(draw: random.Random, spec: Json, schema: Mapping[str, Any]) -> None:
    path = draw.choice(("pods.labels", "pods.annotations", "pods.nodeSelector"))
    key = draw.choice(("a b", "kubernetes.io/x", "x.k8s.io/y", "-a", "a" * 64, "example.org/team", "A_1.b", "Ä"))
    _put(spec, path, {key: draw.choice(("v", "-", "", "a" * 64))})


def _variable(draw: random.Random, spec: Json, schema: Mapping[str, Any]) -> None:
    name = draw.choice(("LD_PRELOAD", "PYTHONPATH", "NCCL_NET_PLUGIN", "NCCL_DEBUG", "1A", "PET_X", "OK", "A B"))
    _put(spec, "pods.env", [{"name": name, "value": "x"}, draw.choice(({"name": "B"}, {"name": "B", "value": "y"}))])


_Change = Callable[[random.Random, Json, Mapping[str, Any]], None]
_CHANGES: tuple[_Change, ...] = (
    _drop, _empty, _retype, _misspell, _add_unknown, _add_fitting, _add_nearly, _contradict, _parallelise,
    _round, _address, _name, _variable,
)  # fmt: skip


def _put(spec: Json, path: str, value: Any) -> None:
    """Set a value, making the maps on the way; nothing where an earlier change left something else there."""
    *parents, last = path.split(".")
    at: Any = spec
    for parent in parents:
        at = at.setdefault(parent, {}) if isinstance(at, dict) else None
    if isinstance(at, dict):
        at[last] = copy.deepcopy(value)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) below a value."""
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [(value, key) for key, _ in pairs] + [place for _, inner in pairs for place in _places(inner)]


def _leaves(schema: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Mapping[str, Any]]]:
    """Path and node of everything that is not a section."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for name, node in schema["properties"].items():
        path = f"{prefix}{name}"
        found += _leaves(node, f"{path}.") if "properties" in node else [(path, node)]
    return found


def _sections(schema: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, node in schema["properties"].items():
        if "properties" in node:
            found += [f"{prefix}{name}", *_sections(node, f"{prefix}{name}.")]
    return found


def _node(schema: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    for name in path.split("."):
        schema = schema["properties"][name]
    return schema


def _fitting(draw: random.Random, node: Mapping[str, Any]) -> Any:
    """A value within bounds; texts with a pattern get one that all our patterns allow."""
    match node.get("type"):
        case None:
            return draw.choice(node["enum"])
        case "string":
            return draw.choice(node["enum"]) if "enum" in node else "1"
        case "integer":
            return draw.choice((node["minimum"], node["maximum"]))
        case "number":
            return node.get("maximum", 1) if not node.get("exclusiveMaximum") else 0.5
        case "boolean":
            return draw.choice((True, False))
        case "array":
            item = node["items"]
            return [_entry(draw, item) if "properties" in item else _fitting(draw, item)]
    return {"a": "1"}


def _entry(draw: random.Random, node: Mapping[str, Any]) -> Json:
    return {name: _fitting(draw, inner) for name, inner in node["properties"].items()}


def _nearly(node: Mapping[str, Any]) -> list[Any]:
    """Values at and just outside the bounds."""
    near: list[Any] = [None]
    if "enum" in node:
        near += [str(node["enum"][0]).upper() + " ", ""]
        near += [] if "type" in node else [1, 0, 1.0, "true", "", [], {}, {"a": 1}, [True]]
    if "maxLength" in node:
        near += ["a" * node["maxLength"], "é" * (node["maxLength"] + 1), "", "a\n", "a b", "-"]
    for bound in ("minimum", "maximum"):
        if bound in node:
            near += [node[bound], node[bound] + 1, node[bound] - 1]
    if "maxItems" in node:
        near += [[], ["a"] * (node["maxItems"] + 1), [None], [1], ["a"], "a"]
    if "maxProperties" in node:
        near += [{}, {f"k{i}": "v" for i in range(node["maxProperties"] + 1)}, {"a": 1}, {"a": None}, {"": "x"}]
    return near
