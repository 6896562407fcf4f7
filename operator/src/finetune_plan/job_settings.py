"""The spec of a job, read once: all spellings of a setting merged, every default filled in, typed and frozen.

The classes below are the whole table of settings, spellings and defaults. What comes after reads their attributes and
never a path into the spec; each setting knows the key that gave it, so that a reason can name it. Spellings agree
(finetune_api.validation.rules), so the first one given counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Generic, TypeVar

from finetune_api.resource import aliases, defaults
from finetune_api.resource.key_table import Fate, declared
from finetune_api.validation.normalize import as_stored
from finetune_api.validation.predicates import find

from . import deepspeed_dictionary
from .deepspeed_dictionary import Translated

T = TypeVar("T")
P, H, V = "hyperparameters.parallelism", "hyperparameters", "training.validation"


@dataclass(frozen=True)
class Setting(Generic[T]):
    """A value, and the key that gave it (relative to spec); no key means that it is the default."""

    value: T
    key: str = ""


def _key(*spellings: str, default: Any = None) -> Any:
    """A setting under its spellings, the preferred one first."""
    return field(metadata={"spellings": spellings, "default": default})


def _group(cls: type[Any]) -> Any:
    return field(metadata={"group": cls})


@dataclass(frozen=True)
class LayoutSettings:
    """How many accelerators, and how ranks are spread over them."""

    total: Setting[int | None] = _key(*aliases.TOTAL)
    nodes: Setting[int | None] = _key(*aliases.NODES)
    per_node: Setting[int | None] = _key(*aliases.PER_NODE)
    tensor: Setting[int] = _key(*aliases.TENSOR, default=1)
    pipeline: Setting[int] = _key(*aliases.PIPELINE, default=1)


@dataclass(frozen=True)
class MethodSettings:
    """What is trained, from the five places that define it."""

    use_qlora: Setting[bool | None] = _key("training.use_qlora")
    mode: Setting[str | None] = _key("training.mode")
    train_kind: Setting[str | None] = _key(f"{H}.train_kind")
    variety: Setting[str | None] = _key("algorithm.variety")
    trainer_mode: Setting[str | None] = _key("policy.trainer_mode")


@dataclass(frozen=True)
class EngineSettings:
    """Who shards what, and in which number format."""

    section: Setting[Mapping[str, Any] | None] = _key(P)
    fsdp: Setting[bool | None] = _key(f"{P}.fsdp")
    fsdp_sharding_strategy: Setting[str] = _key(
        f"{P}.fsdp_sharding_strategy", default=defaults.FSDP_SHARDING_STRATEGY
    )
    use_deepspeed: Setting[bool | None] = _key(f"{P}.use_deepspeed")
    deepspeed_config: Setting[Mapping[str, Any] | None] = _key(f"{P}.deepspeed_config")
    deepspeed_stage: Setting[int] = _key(f"{P}.deepspeed_stage", default=defaults.DEEPSPEED_STAGE)
    offload_optimizer: Setting[str] = _key(f"{P}.offload_optimizer_device", default=defaults.OFFLOAD)
    offload_parameters: Setting[str] = _key(f"{P}.offload_param_device", default=defaults.OFFLOAD)
    bf16: Setting[bool | None] = _key(f"{P}.bf16")
    fp16: Setting[bool | None] = _key(f"{P}.fp16")
    rounding: Setting[str] = _key(f"{P}.rounding", default=defaults.ROUNDING)
    weights: Setting[str] = _key(f"{P}.weights", default=defaults.WEIGHTS)
    tf32: Setting[bool] = _key(f"{P}.tf32", default=False)
    activation_checkpointing: Setting[str | bool] = _key(
        f"{P}.activation_checkpointing", default=defaults.ACTIVATION_CHECKPOINTING
    )

    @property
    def offload(self) -> tuple[Setting[str], Setting[str]]:
        """Where optimizer and weights are kept: none or cpu."""
        return self.offload_optimizer, self.offload_parameters

    @property
    def offloads(self) -> bool:
        """Whether the job moves something to the memory of the host."""
        return any(each.value == "cpu" for each in self.offload)


@dataclass(frozen=True)
class BatchSettings:
    """Rows of a forward pass, and of an optimizer step."""

    per_device: Setting[int | None] = _key(*aliases.MICRO_BATCH)
    accumulation: Setting[int | None] = _key(f"{H}.gradient_accumulation_steps")
    global_batch: Setting[int | None] = _key(f"{H}.global_batch")


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters. alpha without a value follows from the rank."""

    rank: Setting[int] = _key(*aliases.LORA_R, default=defaults.LORA_RANK)
    alpha: Setting[float | None] = _key(*aliases.LORA_ALPHA)
    dropout: Setting[float] = _key(*aliases.LORA_DROPOUT, default=defaults.LORA_DROPOUT)
    target_modules: Setting[list[str]] = _key(*aliases.LORA_TARGETS, default=[defaults.LORA_TARGETS])
    layers: Setting[list[int] | None] = _key("training.lora.layers_to_transform")
    rank_pattern: Setting[dict[str, int] | None] = _key("training.lora.rank_pattern")
    alpha_pattern: Setting[dict[str, float] | None] = _key("training.lora.alpha_pattern")
    rslora: Setting[bool] = _key("training.lora.use_rslora", default=False)
    dora: Setting[bool] = _key("training.lora.use_dora", default=False)
    init: Setting[str] = _key("training.lora.init_lora_weights", default=defaults.LORA_INIT)
    bias: Setting[str] = _key("training.lora.bias", default=defaults.LORA_BIAS)
    modules_to_save: Setting[list[str]] = _key("training.lora.modules_to_save", default=[])
    trainable_tokens: Setting[list[str]] = _key("training.lora.trainable_tokens", default=[])
    target_parameters: Setting[list[str]] = _key("training.lora.target_parameters", default=[])
    source: Setting[str | None] = _key("training.lora.from")

    @property
    def given(self) -> str:
        """The first key about adapters that is set; empty if none is."""
        settings: Iterator[Setting[Any]] = (getattr(self, field.name) for field in fields(self))
        return next((s.key for s in settings if s.key), "")


@dataclass(frozen=True)
class QuantizationSettings:
    """How QLoRA stores the matrices of the base."""

    format: Setting[str] = _key("training.quantization.format", default=defaults.QUANTISATION_FORMAT)
    double_quant: Setting[bool] = _key("training.quantization.double_quant", default=defaults.DOUBLE_QUANT)

    @property
    def given(self) -> str:
        """The first of its keys that is set; empty if none is."""
        return self.format.key or self.double_quant.key


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its schedule. A learning rate without a value follows from the method."""

    name: Setting[str] = _key(f"{H}.optim", default=defaults.OPTIMIZER)
    learning_rate: Setting[float | None] = _key(f"{H}.learning_rate")
    weight_decay: Setting[float] = _key(f"{H}.weight_decay", default=defaults.WEIGHT_DECAY)
    max_grad_norm: Setting[float] = _key(f"{H}.max_grad_norm", default=defaults.MAX_GRAD_NORM)
    scheduler: Setting[str] = _key(f"{H}.lr_scheduler_type", default=defaults.SCHEDULER)
    warmup_ratio: Setting[float] = _key(f"{H}.warmup_ratio", default=defaults.WARMUP_RATIO)
    epochs: Setting[int] = _key(f"{H}.n_epochs", default=defaults.EPOCHS)
    max_steps: Setting[int | None] = _key(*aliases.MAX_STEPS)


@dataclass(frozen=True)
class DataSettings:
    """The rows, and how long one may be."""

    train: Setting[str] = _key(*aliases.DATA, default="")
    validation: Setting[str | None] = _key("data.validation_path")
    on_bad_row: Setting[str] = _key("data.on_bad_row", default=defaults.ON_BAD_ROW)
    max_bad_share: Setting[float] = _key("data.max_bad_share", default=defaults.MAX_BAD_SHARE)
    examples: Setting[int | None] = _key("data.examples")
    shuffle: Setting[bool] = _key("data.shuffle", default=True)
    added_tokens: Setting[list[str]] = _key("data.added_tokens", default=[])
    sequence_length: Setting[int | None] = _key(*aliases.LENGTH)
    max_model_len: Setting[int | None] = _key("model_config.max_model_len")


@dataclass(frozen=True)
class ValidationSettings:
    """Evaluation while training. 0 steps means at the end of every epoch."""

    enabled: Setting[bool] = _key(f"{V}.enabled", default=True)
    strategy: Setting[str] = _key(f"{V}.evaluation_strategy", default="steps")
    eval_steps: Setting[int] = _key(f"{V}.eval_steps", default=0)
    keep_best: Setting[bool] = _key(f"{V}.save_best_model_at_end", default=True)

    @property
    def wanted(self) -> bool:
        return self.enabled.value and self.strategy.value != "no"


@dataclass(frozen=True)
class TrainingSettings:
    """Checkpoints, records, reproducibility. 0 steps means at the end of every epoch."""

    save_steps: Setting[int] = _key("training.save_steps", default=0)
    save_total_limit: Setting[int] = _key("training.save_total_limit", default=defaults.SAVE_TOTAL_LIMIT)
    logging_steps: Setting[int] = _key("training.logging_steps", default=defaults.LOGGING_STEPS)
    seed: Setting[int] = _key("training.seed", default=defaults.SEED)
    deterministic: Setting[bool] = _key("training.deterministic", default=False)


@dataclass(frozen=True)
class PodSettings:
    """Settings of the pods, in Kubernetes' own form."""

    image: Setting[str | None] = _key("pods.image")
    image_pull_policy: Setting[str | None] = _key("pods.imagePullPolicy")
    image_pull_secrets: Setting[list[str]] = _key("pods.imagePullSecrets", default=[])
    cpu: Setting[str | None] = _key("pods.cpu")
    memory: Setting[str | None] = _key("pods.memory")
    shared_memory: Setting[str | None] = _key("pods.sharedMemory")
    node_selector: Setting[dict[str, str] | None] = _key("pods.nodeSelector")
    tolerations: Setting[list[dict[str, Any]] | None] = _key("pods.tolerations")
    labels: Setting[dict[str, str]] = _key("pods.labels", default={})
    annotations: Setting[dict[str, str]] = _key("pods.annotations", default={})
    env: Setting[list[dict[str, str]]] = _key("pods.env", default=[])
    priority_class: Setting[str | None] = _key("pods.priorityClassName")
    service_account: Setting[str | None] = _key("pods.serviceAccountName")
    network_profile: Setting[str | None] = _key("network.profile")
    cache_claim: Setting[str | None] = _key("storage.cacheClaim")
    hugging_face: Setting[dict[str, str] | None] = _key("credentials.huggingFace")


@dataclass(frozen=True)
class LifecycleSettings:
    """Restarts, time limits, clean-up. Seconds."""

    max_restarts: Setting[int] = _key("lifecycle.maxRestarts", default=defaults.MAX_RESTARTS)
    active_deadline: Setting[int | None] = _key("lifecycle.activeDeadlineSeconds")
    grace_period: Setting[int | None] = _key("lifecycle.terminationGracePeriodSeconds")
    ttl: Setting[int | None] = _key("lifecycle.ttlSecondsAfterFinished")


@dataclass(frozen=True)
class JobSettings:
    """All settings of a job."""

    name: str
    model: Setting[str] = _key(*aliases.MODEL, default="")
    gpu_type: Setting[str] = _key("compute.gpu_type", default="")
    output: Setting[str | None] = _key("output.uri")
    merge: Setting[bool] = _key("output.merge", default=False)
    suspend: Setting[bool] = _key("suspend", default=False)
    cancel: Setting[bool] = _key("cancel", default=False)
    queue: Setting[str | None] = _key("queue.name")
    queue_priority: Setting[str | None] = _key("queue.priorityClass")
    layout: LayoutSettings = _group(LayoutSettings)
    method: MethodSettings = _group(MethodSettings)
    engine: EngineSettings = _group(EngineSettings)
    batch: BatchSettings = _group(BatchSettings)
    lora: LoraSettings = _group(LoraSettings)
    quantization: QuantizationSettings = _group(QuantizationSettings)
    optimizer: OptimizerSettings = _group(OptimizerSettings)
    data: DataSettings = _group(DataSettings)
    validation: ValidationSettings = _group(ValidationSettings)
    training: TrainingSettings = _group(TrainingSettings)
    pods: PodSettings = _group(PodSettings)
    lifecycle: LifecycleSettings = _group(LifecycleSettings)
    sources: Mapping[str, str] = field(default_factory=dict)
    """Keys whose values are in a DeepSpeed dictionary -> their paths in it."""
    informational: tuple[str, ...] = ()
    """Keys of the job that change nothing, from the root of the resource."""


def read(resource: Mapping[str, Any]) -> JobSettings:
    """The settings of a FinetuneJob given as plain data. Only of a valid job are the types those declared."""
    meant = deepspeed_dictionary.translated(as_stored(resource.get("spec") or {}))
    given = [path for path in _informational_keys() if find(meant.spec, path) is not None]
    ignored = tuple(f"spec.{path}" for path in (*given, *meant.without_effect))
    name = resource["metadata"]["name"]
    return JobSettings(name=name, sources=meant.sources, informational=ignored, **_read(JobSettings, meant))


def spellings(cls: type[Any] = JobSettings) -> frozenset[str]:
    """Every key that is read."""
    own = frozenset(key for f in fields(cls) for key in f.metadata.get("spellings", ()))
    return own.union(*(spellings(f.metadata["group"]) for f in fields(cls) if "group" in f.metadata))


def _read(cls: type[Any], meant: Translated) -> dict[str, Any]:
    """The arguments of a group's class."""
    found: dict[str, Any] = {}
    for each in fields(cls):
        if "group" in each.metadata:
            group = each.metadata["group"]
            found[each.name] = group(**_read(group, meant))
        elif "spellings" in each.metadata:
            found[each.name] = _setting(meant, **each.metadata)
    return found


def _setting(meant: Translated, spellings: tuple[str, ...], default: Any) -> Setting[Any]:
    given = (
        Setting(value, meant.sources.get(key, key))
        for key in spellings
        if (value := find(meant.spec, key)) is not None
    )
    return next(given, Setting(default))


@cache
def _informational_keys() -> tuple[str, ...]:
    return tuple(key.path for key in declared() if key.fate is Fate.INFORMATIONAL)
