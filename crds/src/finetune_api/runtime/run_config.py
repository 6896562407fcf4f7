"""The run configuration: exactly what the trainer needs to know, and nothing about Kubernetes.

The plan writes it as one JSON document; the trainer reads it from the file that FINETUNE_RUN_CONFIG names.
Every choice is already made here: a field without a default was decided by the plan, with its reason in
the job's status.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from finetune_api.resource import defaults

from .choices import (
    BaseFormat,
    Device,
    Engine,
    LoraBias,
    LoraInit,
    Method,
    OnBadRow,
    OptimizerName,
    Precision,
    Recompute,
    Rounding,
    WeightFormat,
)

DEFAULT_SEQUENCE_LENGTH = defaults.SEQUENCE_LENGTH


class Frozen(BaseModel):
    """Base of every part: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)


Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class DataConfig(Frozen):
    """Where rows come from. URIs as in the job: a plain path, hf://, s3:// ..."""

    train: str
    validation: str | None
    on_bad_row: OnBadRow
    max_bad_share: Fraction
    """Largest share of rows that may be skipped before the run refuses."""
    examples: Positive | None
    """Use only the first N rows."""
    shuffle: bool


class Lora(Frozen):
    """Low-rank adaptation (Hu et al. 2021): W + (alpha / rank) B A."""

    rank: Positive
    alpha: Annotated[float, Field(gt=0)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: tuple[str, ...]
    """Suffixes of module names, regular expressions of whole names (`is_pattern`), or the single word all-linear."""
    layers: tuple[Count, ...] | None = None
    """Numbers of the layers that get adapters; None: all."""
    rank_pattern: tuple[tuple[str, Positive], ...] = ()
    """Regular expressions of ends of names, and ranks in place of `rank`. The first that matches holds."""
    alpha_pattern: tuple[tuple[str, Annotated[float, Field(gt=0)]], ...] = ()
    rslora: bool = False
    """alpha / sqrt(rank) in place of alpha / rank (Kalajdzievski 2023)."""
    dora: bool = False
    """m (W + (alpha / rank) B A) / |W + (alpha / rank) B A|, by row, with m trained too (Liu et al. 2024)."""
    init: LoraInit = LoraInit.DEFAULT
    modules_to_save: tuple[str, ...] = ()
    """Ends of names of modules that are trained in full."""
    trainable_tokens: tuple[str, ...] = ()
    """Texts of tokens whose rows of embedding and output head are trained."""
    token_ids: tuple[Count, ...] = ()
    """Their numbers, which the launcher reads from the tokenizer, or from the adapter that it continues from."""
    bias: LoraBias = LoraBias.NONE
    target_parameters: tuple[str, ...] = ()
    """Ends of names of parameters of three dimensions that get adapters, a pair for each matrix."""
    source: str = ""
    """Folder or name of the adapter that training continues from; empty: a new one. Rank, alpha, targets and what is
    below them are then its own, and the launcher reads them there."""
    folder: str = ""
    """Where the launcher of a node has it."""

    @model_serializer(mode="wrap")
    def _document(self, make: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the keys that version 0.1.0 does not have, where they have their defaults (see LATER)."""
        fields = type(self).model_fields
        later = {key for key, field in fields.items() if not field.is_required()}
        found: dict[str, Any] = make(self)
        return {key: value for key, value in found.items()
                if key not in later or getattr(self, key) != fields[key].default}  # fmt: skip


class BaseQuantisation(Frozen):
    """How the matrices of the base are stored in method qlora (QLoRA, Dettmers et al. 2023)."""

    format: BaseFormat
    double: bool
    """Whether scales of four bits are quantised too, to eight bits: 0.37 bits less an element."""


class Mesh(Frozen):
    """How ranks are laid out. nodes x processes_per_node = data x tensor x pipeline."""

    nodes: Positive
    processes_per_node: Positive
    data_parallel: Positive
    tensor_parallel: Positive
    pipeline_parallel: Positive

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node


class Batch(Frozen):
    """Rows per optimizer step = per_device x accumulation x data_parallel."""

    per_device: Positive
    """Micro batch: rows of one forward pass on one rank."""
    accumulation: Positive
    """Forward passes per optimizer step."""


class Optimizer(Frozen):
    """AdamW (Loshchilov and Hutter 2019)."""

    name: OptimizerName
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    beta1: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    epsilon: Annotated[float, Field(gt=0)]
    max_grad_norm: Annotated[float, Field(ge=0)]
    """Gradients are scaled down to this global norm; 0 leaves them alone."""


class Schedule(Frozen):
    """Learning rate over steps: linear warmup, then the named decay to zero."""

    name: Literal["constant", "cosine", "linear"]
    warmup_ratio: Fraction
    """Share of all steps spent warming up, rounded up."""
    epochs: Positive
    max_steps: Positive | None
    """Ends the run earlier than the epochs would."""


class Validation(Frozen):
    """When to evaluate, and whether the best checkpoint becomes the result."""

    every_steps: Count
    """0 means at the end of every epoch. The last step is always evaluated."""
    keep_best: bool
    metric: Literal["val.loss"]
    greater_is_better: bool


class Checkpointing(Frozen):
    every_steps: Count
    """0 means at the end of every epoch. The last step is always saved."""
    keep: Positive
    """How many checkpoints stay, besides the best one."""


class ZeroSizes(Frozen):
    """Elements that DeepSpeed ZeRO treats at once, where the job says so; None: as the engine chooses."""

    reduce_bucket: Positive | None = None
    allgather_bucket: Positive | None = None
    prefetch_bucket: Count | None = None
    persistence_threshold: Count | None = None
    """Weights up to this size stay whole on every rank in stage 3."""
    max_live_parameters: Count | None = None
    max_reuse_distance: Count | None = None
    sub_group: Count | None = None


class Offload(Frozen):
    """What DeepSpeed ZeRO keeps in the memory of the host."""

    optimizer: bool = False
    """The optimizer's state, and the fp32 weights that it updates there."""
    parameters: bool = False
    """Weights of layers that do not compute, in stage 3."""


class RunConfig(Frozen):
    """One run of the trainer."""

    version: Literal["finetune.dev/run/v1"] = "finetune.dev/run/v1"
    name: str
    model: str
    method: Method
    engine: Engine
    device: Device
    precision: Precision
    rounding: Rounding = Rounding.STOCHASTIC
    """With bf16; the other formats are rounded to the nearest."""
    weights: WeightFormat = WeightFormat.FP32
    tf32: bool = False
    """GPUs may round the factors of fp32 matrix products to TensorFloat-32."""
    deterministic: bool = False
    """Only kernels that give the same bits every time, where the others are faster."""
    data: DataConfig
    sequence_length: Positive | None
    """Longest row in tokens; longer rows are cut at the end and counted. None: DEFAULT_SEQUENCE_LENGTH, or
    the model's own limit if that is smaller."""
    added_tokens: tuple[str, ...] = ()
    """Texts that the tokenizer gains as tokens."""
    lora: Lora | None
    quantisation: BaseQuantisation | None = None
    """Of the base; None in methods other than qlora."""
    mesh: Mesh
    batch: Batch
    zero: ZeroSizes | None = None
    """With the engines of DeepSpeed ZeRO."""
    offload: Offload | None = None
    """With the engines of DeepSpeed ZeRO; None: nothing."""
    optimizer: Optimizer
    schedule: Schedule
    validation: Validation | None
    checkpointing: Checkpointing
    activation_checkpointing: bool
    """Whether the trainer of version 0.1.0, which has no other key, recomputes every layer."""
    recompute: Recompute | None = None
    """None: full or auto, as activation_checkpointing is true or false."""
    log_every_steps: Positive
    seed: Count
    output: str
    merge: bool = False
    """Whether the result of an adapter also holds its base with the adapter merged. Not with method fft."""

    def document(self) -> str:
        """The JSON document, without those LATER keys that have their defaults."""
        defaults = {key for key in LATER if getattr(self, key) == type(self).model_fields[key].default}
        return self.model_dump_json(exclude=defaults)


LATER = ("rounding", "weights", "tf32", "deterministic", "recompute", "quantisation", "merge", "added_tokens",
         "zero", "offload")  # fmt: skip
"""Keys that version 0.1.0 does not have. A document without them is the one that it wrote, so the results that it
recorded on claims count (docs/adr/0013), and its image reads the document."""

IDENTITY = (
    "model",
    "method",
    "precision",
    "rounding",
    "weights",
    "tf32",
    "data.train",
    "data.on_bad_row",
    "data.examples",
    "data.shuffle",
    "sequence_length",
    "added_tokens",
    "lora",
    "quantisation",
    "optimizer",
    "schedule",
    "seed",
)
"""Keys that make a run what it is. Together with the content of model and data, and the rows per step,
they form the digest that checkpoints are keyed by: another value is another run. How the same work is
spread over ranks (mesh, engine, micro batch, offload) is not among them."""

SPEC_KEYS = {
    "model": "job.model",
    "method": "training.mode",
    "precision": "hyperparameters.parallelism.bf16",
    "rounding": "hyperparameters.parallelism.rounding",
    "weights": "hyperparameters.parallelism.weights",
    "tf32": "hyperparameters.parallelism.tf32",
    "data.train": "job.data",
    "data.on_bad_row": "data.on_bad_row",
    "data.examples": "data.examples",
    "data.shuffle": "data.shuffle",
    "sequence_length": "hyperparameters.sequence_length",
    "added_tokens": "data.added_tokens",
    "lora": "training.lora",
    "lora.rank": "training.lora.r",
    "lora.alpha": "training.lora.alpha",
    "lora.dropout": "training.lora.dropout",
    "lora.target_modules": "training.lora.target_modules",
    "lora.layers": "training.lora.layers_to_transform",
    "lora.rank_pattern": "training.lora.rank_pattern",
    "lora.alpha_pattern": "training.lora.alpha_pattern",
    "lora.rslora": "training.lora.use_rslora",
    "lora.dora": "training.lora.use_dora",
    "lora.init": "training.lora.init_lora_weights",
    "lora.bias": "training.lora.bias",
    "lora.modules_to_save": "training.lora.modules_to_save",
    "lora.trainable_tokens": "training.lora.trainable_tokens",
    "lora.target_parameters": "training.lora.target_parameters",
    "lora.source": "training.lora.from",
    "quantisation": "training.quantization",
    "quantisation.format": "training.quantization.format",
    "quantisation.double": "training.quantization.double_quant",
    "optimizer.name": "hyperparameters.optim",
    "optimizer.learning_rate": "hyperparameters.learning_rate",
    "optimizer.weight_decay": "hyperparameters.weight_decay",
    "optimizer.max_grad_norm": "hyperparameters.max_grad_norm",
    "schedule.name": "hyperparameters.lr_scheduler_type",
    "schedule.warmup_ratio": "hyperparameters.warmup_ratio",
    "schedule.epochs": "hyperparameters.n_epochs",
    "schedule.max_steps": "hyperparameters.total_steps",
    "seed": "training.seed",
}
"""Where the user writes what IDENTITY lists, for messages. A key without an entry has none in the job."""
