"""Unknown keys, each with the nearest known one. Called by check.py.

In the mirrored sections the admission policy refuses the same keys; elsewhere strict validation of the API
server does, which kubectl asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune_api.resource import key_table
from finetune_api.resource.key_table import Node

from .problem import Problem

ROOT = ("apiVersion", "kind", "metadata", "spec", "status")
META = ("name", "generateName", "namespace", "labels", "annotations", "finalizers", "ownerReferences", "uid",
        "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
        "managedFields", "selfLink")  # fmt: skip
"""Keys of ObjectMeta (k8s.io/apimachinery, meta/v1)."""


def unknown_keys(resource: Mapping[str, Any]) -> Iterator[Problem]:
    """Unknown keys anywhere in a resource given as plain data."""
    yield from (_problem("", name, ROOT) for name in resource if name not in ROOT)
    metadata = resource.get("metadata")
    if isinstance(metadata, Mapping):
        yield from (_problem("metadata", name, META) for name in metadata if name not in META)
    yield from _below(resource.get("spec"), key_table.spec(), "spec")


USUAL: Mapping[str, str] = {
    "adapter": "training.mode", "adapter_name_or_path": "training.lora.from", "base_model": "job.model",
    "batch": "hyperparameters.per_device_batch", "bias": "training.lora.bias", "dataset": "job.data",
    "bnb_4bit_quant_type": "training.quantization.format",
    "bnb_4bit_use_double_quant": "training.quantization.double_quant",
    "ddp": "hyperparameters.parallelism.fsdp", "dtype": "hyperparameters.parallelism.bf16",
    "epochs": "hyperparameters.n_epochs", "fsdp2": "hyperparameters.parallelism.fsdp",
    "gpus": "compute.gpu_count", "hsdp": "hyperparameters.parallelism.fsdp_sharding_strategy",
    "gradient_checkpointing": "hyperparameters.parallelism.activation_checkpointing",
    "init_lora_weights": "training.lora.init_lora_weights",
    **dict.fromkeys(("layers_to_transform", "lora_layers_to_transform"), "training.lora.layers_to_transform"),
    "load_best_model_at_end": "training.validation.save_best_model_at_end",
    "load_in_4bit": "training.use_qlora", "lora_alpha_pattern": "training.lora.alpha_pattern",
    "lora_model_dir": "training.lora.from", "lora_r": "training.lora.r",
    "lora_modules_to_save": "training.lora.modules_to_save",
    "lora_rank_pattern": "training.lora.rank_pattern",
    "lora_target_linear": "training.lora.target_modules",
    "lora_target_parameters": "training.lora.target_parameters", "lr": "hyperparameters.learning_rate",
    "additional_target": "training.lora.modules_to_save",
    **dict.fromkeys(("additional_special_tokens", "new_tokens", "tokens"), "data.added_tokens"),
    **dict.fromkeys(("merge_adapter", "merge_lora"), "output.merge"),
    "micro_batch_size": "hyperparameters.per_device_batch",
    "model_name_or_path": "job.model", "modules_to_save": "training.lora.modules_to_save",
    "num_epochs": "hyperparameters.n_epochs",
    "num_train_epochs": "hyperparameters.n_epochs", "optimizer": "hyperparameters.optim",
    "peft_init_lora_weights": "training.lora.init_lora_weights",
    "peft_layers_to_transform": "training.lora.layers_to_transform",
    "peft_use_dora": "training.lora.use_dora", "peft_use_rslora": "training.lora.use_rslora",
    "per_device_train_batch_size": "hyperparameters.per_device_batch",
    "precision": "hyperparameters.parallelism.bf16", "quant_type": "training.quantization.format",
    "rank": "training.lora.r",
    **dict.fromkeys(("seq_len", "sequence_len"), "hyperparameters.sequence_length"),
    "strategy": "hyperparameters.parallelism.fsdp",
    "target_parameters": "training.lora.target_parameters",
    "use_4bit": "training.use_qlora", "use_dora": "training.lora.use_dora", "use_rslora": "training.lora.use_rslora",
}  # fmt: skip
"""Usual names in other systems -> our keys, relative to spec. They resemble ours too little to be found."""


NOT_YET: Mapping[str, str] = {
    **dict.fromkeys(("load_in_8bit", "use_8bit"),
                    "Remove it; for a base in eight bits set training.use_qlora to true and "
                    "training.quantization.format to int8."),
    "exclude_modules": "Remove it, and name in training.lora.target_modules what gets adapters, by ends of names or "
                       "by an expression such as '.*\\.(q|v)_proj'.",
    "lora_bias": "Remove it: biases of adapters themselves are not supported; training.lora.bias trains those of the "
                 "base.",
    **dict.fromkeys(("val_set_size", "eval_split", "test_size"),
                    "Remove it, and name rows to evaluate in data.validation_path: rows are never split off."),
    "bnb_4bit_quant_storage": "Remove it: codes are stored as bytes, however they are sharded.",
    **dict.fromkeys(("llm_int8_threshold", "llm_int8_has_fp16_weight"), "Remove it: inputs are not quantised."),
    **dict.fromkeys(("llm_int8_skip_modules", "llm_int8_enable_fp32_cpu_offload"),
                    "Remove it: head, embeddings and routers are never quantised, and nothing is offloaded."),
    **dict.fromkeys(("trainable_token_indices", "peft_trainable_token_indices"),
                    "Name the tokens by their texts instead, in training.lora.trainable_tokens."),
    "bnb_4bit_compute_dtype": "Remove it: layers compute in the format of the job, which "
                              "hyperparameters.parallelism.bf16 or fp16 sets.",
    "loftq_config": "LoftQ is not supported; training.lora.init_lora_weights: pissa makes the error of a quantised "
                    "base smaller, too.",
}  # fmt: skip
"""Keys of other systems that are no single key here, and what to do instead."""


def nearest(name: str, among: tuple[str, ...]) -> str | None:
    """The name that was probably intended."""
    import difflib  # noqa: PLC0415 - only a mistake needs it

    return next(iter(difflib.get_close_matches(name, among, 1)), None)


def _below(value: Any, node: Node, path: str) -> Iterator[Problem]:
    known = key_table.keys(node)
    if not known or not isinstance(value, Mapping):
        return
    for name, inner in value.items():
        at = f"{path}.{name}"
        if name not in known:
            yield _problem(path, name, tuple(known))
        elif "items" not in known[name]:
            yield from _below(inner, known[name], at)
        elif isinstance(inner, list):
            for i, item in enumerate(inner):
                yield from _below(item, known[name]["items"], f"{at}[{i}]")


def _problem(parent: str, name: str, siblings: tuple[str, ...]) -> Problem:
    path = f"{parent}.{name}".lstrip(".")
    near = nearest(name, siblings)
    elsewhere = [key.path for key in key_table.declared() if key.path.rpartition(".")[2] == name]
    if name in NOT_YET:
        remedy = NOT_YET[name]
    elif name in USUAL:
        remedy = f"Did you mean spec.{USUAL[name]}?"
    elif near:
        remedy = f"Did you mean {parent}.{near}?".replace(" .", " ")
    elif elsewhere:
        remedy = f"Did you mean spec.{elsewhere[0]}?"
    else:
        remedy = f"Remove it. Known here: {', '.join(siblings)}."
    return Problem(path, "UnknownKey", f"{name!r} is not a key of {parent or 'a FinetuneJob'}.", remedy)
