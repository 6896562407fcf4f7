"""Specs drawn from a seed: most are valid, some nearly are. Together they set every key, at its bounds too.

keys.json is the shape of the resource when the guards were recorded, so a key that is added later changes no
sample. To sample it, add it there, raise plans.VERSION and record again.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

Json = dict[str, Any]

KEYS: Mapping[str, Json] = json.loads(Path(__file__).with_name("keys.json").read_text())
"""Path below spec -> type, bounds and fate."""

H, P, T = "hyperparameters", "hyperparameters.parallelism", "training"
MODEL = ("job.model", "policy.model_name", "policy.source")
DATA = ("job.data", "job.data_path")
NODES = ("compute.nodes", "data.topology.nodes", f"{P}.topology.nodes")
PER_NODE = ("compute.gpus_per_node", "data.topology.gpus_per_node", f"{P}.topology.gpus_per_node")
TOTAL = ("compute.gpu_count", "data.topology.total_gpus", f"{P}.topology.total_gpus", f"{H}.world_size",
         "compute.topology.gpus_for_training")  # fmt: skip
TENSOR = (f"{P}.tensor_parallel_size", "data.topology.tensor_parallel", f"{P}.topology.tensor_parallel",
          "compute.topology.tensor_parallel")  # fmt: skip
PIPELINE = (f"{P}.pipeline_parallel_size",)
REPLICAS = ("data.topology.data_parallel", f"{P}.topology.data_parallel")
ADAPTERS = {
    key: (f"{H}.lora.{key}", f"{H}.lora_{flat}", f"{T}.lora.{key}", f"lora.{key}")
    for key, flat in (("r", "rank"), ("alpha", "alpha"), ("dropout", "dropout"),
                      ("target_modules", "target_modules"))
}  # fmt: skip
ALIASES: tuple[tuple[str, ...], ...] = (
    (f"{H}.per_device_batch", f"{H}.batch_size"),
    (f"{H}.total_steps", f"{H}.train_steps", f"{H}.steps"),
    (f"{H}.sequence_length", f"{H}.max_seq_length"),
    *ADAPTERS.values(),
)
"""Aliases of keys whose value depends on no other key."""

MODELS = (
    "Qwen/Qwen3-4B",
    "Qwen/Qwen3-32B@main",
    "hf://org/name@v1",
    "pvc://models/base",
    "/mnt/model",
    "./here",
    "pvc://models",
    "a" * 256,
)
ROWS = ("pvc://rows/train.jsonl", "configmap://rows/train.jsonl", "rows.jsonl", "/data/rows.jsonl",
        "pvc://models/rows.jsonl")  # fmt: skip
GPUS = ("H100", "H100", "h100", "A100", "A10G", "B200", "GB200", "H200", "L4", "l40s", "CPU", "CPU", "cpu", "NPU")
LABELS: tuple[Json, ...] = ({"team": "a"}, {"example.org/team": "b", "A_1.b": ""}, {})
QUANTITIES = ("1", "8", "500m", "64Gi", "1.5Gi", "100M", "3Ti", "7Gi")
VALUES: Mapping[str, Sequence[Any]] = {
    "compute.gpu_type": GPUS,
    "data.validation_path": ROWS,
    "output.uri": ("pvc://models/out", "pvc://models/out/", "pvc://models", "pvc://models/other", "/mnt/here"),
    f"{T}.validation.greater_is_better": (False,),
    f"{T}.lora.target_modules": (["all-linear"], ["q_proj", "v_proj"], ["up_proj"]),
    f"{H}.learning_rate": (1, 8e-6, 2e-4, 1e-5, 0.5),
    "model_config.max_model_len": (1, 512, 2048, 4096, 16777216),
    "pods.image": ("registry.example/trainer:1", "trainer@sha256:" + "0" * 64),
    "pods.imagePullSecrets": ([], ["registry"], ["a", "b.c"]),
    "pods.cpu": QUANTITIES, "pods.memory": QUANTITIES, "pods.sharedMemory": QUANTITIES,
    "pods.nodeSelector": LABELS, "pods.labels": LABELS,
    "pods.annotations": ({"note": "some words"}, {"example.org/a": ""}, {}),
    "pods.env": ([{"name": "NCCL_DEBUG", "value": "INFO"}], [{"name": "B", "value": ""}, {"name": "A", "value": "1"}],
                 [{"name": "HF_HOME", "value": "/x"}], []),
    "pods.tolerations": ([{"key": "gpu", "operator": "Exists"}], [{"operator": "Exists"}],
                         [{"key": "a", "operator": "Equal", "value": "b", "effect": "NoSchedule"},
                          {"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]),
    "pods.serviceAccountName": ("reader",),
    "credentials.huggingFace.key": ("token", "other.key"),
    "tags": ({"team": "a", "nested": {"free": [1, "x"]}}, {}),
    "metadata": ({"owner": "b"}, {}),
}  # fmt: skip
"""Values of keys whose bounds alone are not enough to choose a valid one."""
NETWORKS = ("tcp", "tcp", "none", "auto", "coreweave-ib", "aws-efa")
OFFLOADS = (f"{P}.offload_optimizer_device", f"{P}.offload_param_device")
APART = {*OFFLOADS, f"{P}.use_deepspeed", f"{P}.deepspeed_stage", f"{P}.fsdp", f"{P}.fsdp_sharding_strategy",
         f"{P}.fsdp_auto_wrap_policy", f"{P}.fp16", f"{P}.bf16", f"{P}.rounding", f"{P}.weights", f"{T}.mode",
         f"{T}.use_qlora", f"{H}.train_kind", "algorithm.variety", "policy.trainer_mode", "suspend", "cancel",
         "compute.gpu_type", "network.profile", "credentials.huggingFace.secretName", "credentials.huggingFace.key",
         *MODEL, *DATA,
         *NODES, *PER_NODE, *TOTAL, *TENSOR, *PIPELINE, *REPLICAS,
         *(path for group in ALIASES for path in group)}  # fmt: skip
"""Keys that are drawn together with others."""
FREE = tuple(path for path, key in KEYS.items() if path not in APART and key.get("fate") != "refused")


def spec(draw: Random, *, wrong: float = 0.25) -> Json:
    """A spec; with probability `wrong` it has one or two mistakes."""
    body: Json = {}
    _say(draw, body, MODEL, draw.choice(MODELS))
    _say(draw, body, DATA, draw.choice(ROWS))
    put(body, "compute.gpu_type", draw.choice(GPUS))
    for part in (_layout, _method, _engine, _precision, _same, _free, _life):
        part(draw, body)
    if draw.random() < wrong:
        for _ in range(draw.choice((1, 1, 2))):
            draw.choice(_MISTAKES)(draw, body)
    return body


def put(body: Json, path: str, value: Any) -> None:
    """Set a value, making the maps on the way; nothing where a mistake left something else there."""
    *parents, last = path.split(".")
    at: Any = body
    for parent in parents:
        at = at.setdefault(parent, {}) if isinstance(at, dict) else None
    if isinstance(at, dict):
        at[last] = copy.deepcopy(value)


def paths(body: Json) -> list[str]:
    """The keys of keys.json that a spec sets."""
    return [path for path in KEYS if _has(body, path.split("."))]


def _has(at: Any, names: list[str]) -> bool:
    return not names or (isinstance(at, dict) and names[0] in at and _has(at[names[0]], names[1:]))


def _say(draw: Random, body: Json, group: Sequence[str], value: Any) -> None:
    """Set one of the aliases, or several to the same value."""
    for path in draw.sample(group, min(len(group), draw.choice((1, 1, 1, 2, 5)))):
        put(body, path, value)


def _layout(draw: Random, body: Json) -> None:
    nodes, width = draw.choice(((1, 1), (1, 1), (1, 2), (1, 8), (2, 4), (2, 8), (3, 2), (4, 1), (1, 64), (2048, 8)))
    match draw.randrange(6):
        case 0:
            nodes, width = 1, 1
        case 1:
            nodes = 1
            _say(draw, body, TOTAL, width)
        case 2:
            width = 1
            _say(draw, body, NODES, nodes)
        case 3:
            _say(draw, body, NODES, nodes)
            _say(draw, body, PER_NODE, width)
        case 4:
            nodes, width = draw.choice(((1, nodes * width), (nodes * width, 1)))
            _say(draw, body, TOTAL, nodes * width)
            _say(draw, body, *((NODES, 1) if nodes == 1 else (PER_NODE, 1)))
        case 5:
            for group, value in ((TOTAL, nodes * width), (NODES, nodes), (PER_NODE, width)):
                _say(draw, body, group, value)
    _mesh(draw, body, nodes, width)


def _mesh(draw: Random, body: Json, nodes: int, width: int) -> None:
    if draw.random() < (0.8 if nodes > 1 else 0.2):
        put(body, "network.profile", draw.choice(NETWORKS))
    tensor = draw.choice((1, width)) if draw.random() < 0.08 else 1
    if draw.random() < 0.25 or tensor > 1:
        _say(draw, body, TENSOR, tensor)
    if draw.random() < 0.15:
        _say(draw, body, PIPELINE, 1)
    if draw.random() < 0.25:
        _say(draw, body, REPLICAS, nodes * width // tensor)


def _method(draw: Random, body: Json) -> None:
    modes, kind, trainer = draw.choice((
        *4 * ((("fft", "full", "full_finetune", "sft_offline"), "fft", "full"),),
        *4 * ((("lora", "lora", "sft_offline"), "peft", "lora"),),
        (("qlora", "lora", "sft_offline"), "peft", "qlora"),
    ))  # fmt: skip
    quantised = trainer == "qlora"
    for path, value, share in (
        (f"{T}.mode", draw.choice(modes), 0.6),
        (f"{H}.train_kind", kind, 0.5),
        ("policy.trainer_mode", draw.choice((trainer, trainer, "lora")), 0.4),
        ("algorithm.variety", draw.choice((trainer, trainer, "fft", "lora")), 0.4),
        (f"{T}.use_qlora", quantised, 0.5),
    ):
        if draw.random() < share:
            put(body, path, value)


def _engine(draw: Random, body: Json) -> None:
    match draw.randrange(8):
        case 0 | 1 | 2:
            put(body, f"{P}.fsdp", True)
            if draw.random() < 0.6:
                put(body, f"{P}.fsdp_sharding_strategy", draw.choice(("full_shard", "FULL_SHARD", "no_shard")))
            if draw.random() < 0.4:
                wraps = ("transformer_block", "transformer_based_wrap", "Transformer_Block")
                put(body, f"{P}.fsdp_auto_wrap_policy", draw.choice(wraps))
        case 3:
            _zero(draw, body)
        case 4:
            put(body, f"{P}.use_deepspeed", False)
            put(body, f"{P}.fsdp", False)
            put(body, f"{P}.deepspeed_stage", draw.choice((0, 3)))
            put(body, f"{P}.fsdp_sharding_strategy", "hybrid_shard")


def _zero(draw: Random, body: Json) -> None:
    put(body, f"{P}.use_deepspeed", True)
    if draw.random() < 0.8:
        put(body, f"{P}.deepspeed_stage", draw.choice((0, 0, 0, 1, 2, 3)))
    for device in OFFLOADS:
        if draw.random() < 0.2:
            put(body, device, draw.choice(("none", "cpu")))


def _precision(draw: Random, body: Json) -> None:
    if draw.random() < 0.5:
        put(body, f"{P}.bf16", draw.random() < 0.6)
    if draw.random() < 0.3:
        put(body, f"{P}.fp16", draw.random() < 0.1)
    for path in (f"{P}.rounding", f"{P}.weights"):
        if draw.random() < 0.1:
            put(body, path, fitting(draw, path))


def _same(draw: Random, body: Json) -> None:
    """Keys with aliases."""
    for group in ALIASES:
        if draw.random() < 0.4:
            _say(draw, body, group, fitting(draw, f"{T}.lora.target_modules" if "target" in group[0] else group[0]))


def _free(draw: Random, body: Json) -> None:
    share = draw.choice((0.03, 0.15, 0.3))
    for path in FREE:
        if draw.random() < (0.9 if path == "output.uri" else share):
            put(body, path, fitting(draw, path))
    if "uri" not in body.get("output", {}):
        put(body, "output.ephemeral", True)
    if draw.random() < share:
        put(body, "credentials.huggingFace.secretName", "hub")
        if draw.random() < 0.5:
            put(body, "credentials.huggingFace.key", fitting(draw, "credentials.huggingFace.key"))


def _life(draw: Random, body: Json) -> None:
    for path, share in (("suspend", 0.15), ("cancel", 0.1)):
        if draw.random() < share:
            put(body, path, draw.random() < 0.2)


def fitting(draw: Random, path: str) -> Any:
    """A value that the key allows: at a bound, near it, or in between."""
    return draw.choice(VALUES[path]) if path in VALUES else _fits(draw, KEYS[path])


def _fits(draw: Random, key: Json) -> Any:
    low, high = key.get("minimum", 0), key.get("maximum", 1)
    match key["type"]:
        case "string":
            return (
                draw.choice(key["enum"]) if "enum" in key else draw.choice(("a", "x1", "abc", "a" * key["maxLength"]))
            )
        case "integer":
            return draw.choice((low, low + 1, high, min(high, low + draw.randrange(64))))
        case "number":
            ends = [low] * ("exclusiveMinimum" not in key) + [high] * ("exclusiveMaximum" not in key)
            return draw.choice((*ends, (low + high) / 8, (low + high) / 2, low + 0.015625))
        case "boolean":
            return draw.random() < 0.5
        case "array":
            items = [_fits(draw, key["items"]) for _ in range(draw.choice((1, 2, 3)))]
            return items if draw.random() < 0.9 or key.get("minItems") else []
    return {"a": "1"}


def _drop(draw: Random, body: Json) -> None:
    at, name = draw.choice(_everything(body))
    del at[name]


def _empty(draw: Random, body: Json) -> None:
    at, name = draw.choice(_everything(body))
    at[name] = draw.choice((None, "", [], {}))


def _retype(draw: Random, body: Json) -> None:
    at, name = draw.choice(_everything(body))
    at[name] = copy.deepcopy(
        draw.choice(("word", "8", 7, -1, 2.5, 8.0, True, ["a", None], {"a": 1}, [{"name": "x"}], 1e30))
    )


def _misspell(draw: Random, body: Json) -> None:
    at, name = draw.choice(_everything(body))
    if isinstance(name, str):
        cut = draw.randrange(len(name))
        at[draw.choice((name[:cut] + name[cut + 1 :], f"{name}s", name.title())) or "x"] = at.pop(name)


def _unknown(draw: Random, body: Json) -> None:
    parent = draw.choice(tuple(KEYS)).rpartition(".")[0]
    put(body, f"{parent}.surprise".lstrip("."), draw.choice((1, "x", {})))


def _outside(draw: Random, body: Json) -> None:
    path = draw.choice([p for p, key in KEYS.items() if {"minimum", "maximum", "maxLength", "enum"} & key.keys()])
    key = KEYS[path]
    past = [key[b] + step for b, step in (("minimum", -1), ("maximum", 1)) if b in key]
    past += ["é" * (key["maxLength"] + 1), "a\n", "-"] if "maxLength" in key else []
    put(body, path, draw.choice(past or ["nothing of the kind"]))


def _contradict(draw: Random, body: Json) -> None:
    groups = (NODES, PER_NODE, TOTAL, TENSOR, PIPELINE, REPLICAS, ALIASES[0], ALIASES[1])
    put(body, draw.choice(draw.choice(groups)), draw.choice((1, 2, 3, 4, 8, 16, 64, 128)))


def _parallelise(draw: Random, body: Json) -> None:
    for path in draw.sample(("use_deepspeed", "fsdp", "fp16", "bf16"), 2):
        put(body, f"{P}.{path}", True)


def _refuse(draw: Random, body: Json) -> None:
    path = draw.choice([p for p, key in KEYS.items() if key.get("fate") == "refused"])
    put(body, path, fitting(draw, path))


def _address(draw: Random, body: Json) -> None:
    uris = (
        "ftp://x/y",
        "a:b",
        "s3://",
        "s3://bucket/file",
        "hf://org/rows",
        "oci://host/model:1",
        "s3://b/../c",
        "pvc://c",
        "../rows.jsonl",
        "hf://a/b@c",
        "https:x",
    )
    put(body, draw.choice((MODEL[0], *DATA, "data.validation_path", "output.uri")), draw.choice(uris))


def _name(draw: Random, body: Json) -> None:
    keys = ("a b", "kubernetes.io/x", "x.k8s.io/y", "-a", "a" * 64, "Ä")
    path = draw.choice(("pods.labels", "pods.annotations", "pods.nodeSelector"))
    put(body, path, {draw.choice(keys): draw.choice(("v", "-", "a" * 64))})


def _variable(draw: Random, body: Json) -> None:
    name = draw.choice(("LD_PRELOAD", "PYTHONPATH", "NCCL_NET_PLUGIN", "1A", "PET_X", "A B", "FINETUNE_X"))
    put(body, "pods.env", [{"name": name, "value": "x"}])


def _method_words(draw: Random, body: Json) -> None:
    put(body, f"{T}.mode", draw.choice(("full", "lora", "qlora", "fft")))
    put(body, f"{H}.train_kind", draw.choice(("fft", "peft")))
    put(body, f"{T}.use_qlora", draw.random() < 0.5)


def _cluster(draw: Random, body: Json) -> None:
    path, value = draw.choice((("compute.gpu_type", "X9000"), ("pods.serviceAccountName", "stranger")))
    put(body, path, value)


_MISTAKES: tuple[Callable[[Random, Json], None], ...] = (
    _drop, _empty, _retype, _misspell, _unknown, _outside, _outside, _contradict, _contradict, _parallelise, _refuse,
    _address, _name, _variable, _method_words, _cluster,
)  # fmt: skip


def _everything(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) below a value."""
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [(value, key) for key, _ in pairs] + [place for _, inner in pairs for place in _everything(inner)]
