"""The sections mirrored from a finetuning TOML. A TOML pastes in as it is, so names stay in snake_case.

No key has a default here: a default in the schema would be written into stored jobs and change what a queued
job means when it changes. Defaults are decided by the plan and shown in the job's status.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from . import defaults
from .keys import Section, informational, key, refused

ShortText = Annotated[str, Field(min_length=1, max_length=128)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Uri = Annotated[str, Field(min_length=1, max_length=1024)]
LongText = Annotated[str, Field(max_length=2048)]
ShortTexts = Annotated[tuple[ShortText, ...], Field(min_length=1, max_length=64)]
Targets = Annotated[tuple[ShortText, ...], Field(max_length=64)]
Gpus = Annotated[int, Field(ge=1, le=16384)]
Rows = Annotated[int, Field(ge=1, le=1048576)]
Tokens = Annotated[int, Field(ge=1, le=16777216)]
Steps = Annotated[int, Field(ge=1, le=100000000)]
Width = Annotated[int, Field(ge=1, le=1024)]
Share = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Rank = Annotated[int, Field(ge=1, le=256)]
LayerNumber = Annotated[int, Field(ge=0, le=1023)]
Alpha = Annotated[float, Field(gt=0, le=4096)]
AdapterStart = Literal[
    "default", "gaussian", "olora", "pissa", "pissa_niter_1", "pissa_niter_2", "pissa_niter_4", "pissa_niter_8",
    "pissa_niter_16", "pissa_niter_32", "pissa_niter_64",
]  # fmt: skip
"""Values of LoraInit."""
Free = Annotated[dict[str, object], Field(max_length=64)]

RL = "it belongs to reinforcement learning, and a FinetuneJob trains on a dataset"
ELSEWHERE = "it is about using the model after training"


def _not_number(value: object) -> object:
    """1 is not true: for pydantic's Literal it is, also where it is strict."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"{value} is a number")
    return value


Recomputation = Annotated[Literal[True, False, "none", "selective", "full", "auto"], BeforeValidator(_not_number)]


def _scientific(number: float) -> str:
    """1e-5, as people write it."""
    return f"{number:.0e}".replace("e-0", "e-")


class Algorithm(Section):
    """What kind of training this is. Optional: the other sections define it."""

    type: Literal["offline"] | None = key(
        "Training on a fixed dataset: offline.",
        instead="Set offline, or leave it out. Training on rows that the model generates meanwhile "
        "(online) is not supported yet.",
    )
    method: Literal["sft", "supervised_finetune"] | None = key(
        "Supervised finetuning: sft or supervised_finetune.",
        instead="Set sft, or leave it out. Preference and reinforcement learning (dpo, kto, orpo, grpo, ppo, rlhf) "
        "are not supported yet. For LoRA or QLoRA set training.mode.",
    )
    variety: Literal["fft", "lora", "qlora"] | None = key(
        "Full finetuning or adapters; qlora quantises the base of adapters. Yields to training.use_qlora, "
        "training.mode and hyperparameters.train_kind where they differ; the status reports it."
    )


class Job(Section):
    """What is trained on what."""

    model: Name | None = key("Base model: org/name or org/name@revision of the Hugging Face Hub, a URI, or a folder.")
    data: Uri | None = key("Training rows: a JSONL file by path or URI (pvc://claim/file, configmap://name/key).")
    data_path: Uri | None = key("Another name of job.data.")
    poll_seconds: Annotated[int, Field(ge=0, le=86400)] | None = informational(
        "Seconds between two polls of the job.", "the job's status is watched, not polled"
    )
    suffix: ShortText | None = informational("Suffix of the finished model's name.", "output.uri names the result")
    description: LongText | None = informational("Text for people.", "it changes nothing")
    modalities: Annotated[tuple[ShortText, ...], Field(max_length=8)] | None = informational(
        "Kinds of content in the rows.", "the rows themselves define their content; rows with images are refused"
    )


class Policy(Section):
    """How other systems name and sample the model."""

    model_name: Name | None = key("Base model, where job.model is absent.")
    source: Name | None = key("Base model, where job.model and policy.model_name are absent.")
    trainer_mode: Literal["full", "lora", "qlora"] | None = key(
        "Full finetuning or adapters, where no other key selects it."
    )
    label: Name | None = informational("Name of the policy.", ELSEWHERE)
    max_tokens: Tokens | None = informational("Longest answer in tokens.", ELSEWHERE)
    temperature: Annotated[float, Field(ge=0, le=100)] | None = informational("Sampling temperature.", ELSEWHERE)
    top_p: Share | None = informational("Nucleus sampling share.", ELSEWHERE)
    top_k: Annotated[int, Field(ge=-1, le=1000000)] | None = informational("Sampling candidates.", ELSEWHERE)
    repetition_penalty: Annotated[float, Field(ge=0, le=100)] | None = informational(
        "Penalty on repeated tokens.", ELSEWHERE
    )
    stop_sequences: Annotated[tuple[ShortText, ...], Field(max_length=64)] | None = informational(
        "Texts that end an answer.", ELSEWHERE
    )
    inference_url: Uri | None = informational("Where the model is served.", ELSEWHERE)


class RolloutTopology(Section):
    """Split of GPUs between rollouts and training."""

    type: ShortText | None = informational("Name of the split.", RL)
    gpus_for_vllm: Annotated[int, Field(ge=0, le=16384)] | None = refused("GPUs that generate.", RL)
    gpus_for_ref: Annotated[int, Field(ge=0, le=16384)] | None = refused("GPUs of the reference model.", RL)
    reference_placement: ShortText | None = refused("Where the reference model runs.", RL)
    gpus_for_training: Gpus | None = key("GPUs that train: all of them. Must agree with compute.gpu_count.")
    tensor_parallel: Width | None = key("Another name of hyperparameters.parallelism.tensor_parallel_size.")


class Compute(Section):
    """The machines. gpu_count = nodes x gpus_per_node; set two of them, or one, or none."""

    gpu_type: Annotated[str, Field(min_length=1, max_length=63)] | None = key(
        "Kind of accelerator, such as H100, or CPU. Required."
    )
    gpu_count: Gpus | None = key("Total number of accelerators. With gpu_type CPU: of processes.")
    nodes: Annotated[int, Field(ge=1, le=2048)] | None = key("Machines; each becomes one pod. 1 if absent.")
    gpus_per_node: Annotated[int, Field(ge=1, le=64)] | None = key("Accelerators of one machine.")
    variant: ShortText | None = informational(
        "Name of the machine shape, such as H100-8x.", "gpu_type, gpu_count and nodes define the same"
    )
    topology: RolloutTopology | None = key("Split of GPUs between rollouts and training.")


class Topology(Section):
    """The layout again, as other systems name it. Must agree with compute."""

    container_count: Gpus | None = informational("Total number of containers.", "a node is always one pod")
    gpus_per_node: Annotated[int, Field(ge=1, le=64)] | None = key("As compute.gpus_per_node.")
    total_gpus: Gpus | None = key("As compute.gpu_count.")
    nodes: Annotated[int, Field(ge=1, le=2048)] | None = key("As compute.nodes.")
    variant: ShortText | None = informational(
        "Name of the machine shape.", "gpu_type, gpu_count and nodes define the same"
    )
    tensor_parallel: Width | None = key("As hyperparameters.parallelism.tensor_parallel_size.")
    data_parallel: Annotated[int, Field(ge=1, le=16384)] | None = key(
        "Replicas of the model: gpu_count / (tensor_parallel x pipeline_parallel). Checked."
    )


class Data(Section):
    """The rows."""

    topology: Topology | None = key("The layout again. Must agree with compute.")
    validation_path: Uri | None = key("Rows to evaluate on, in the same format. Nothing is split off silently.")
    format: Literal["messages"] | None = key(
        "Format of the rows. messages if absent.",
        instead="Set messages, or leave it out, and convert the rows: one JSON object a line, with a list of "
        "messages (role, content). alpaca's instruction and output become a user's and an assistant's message; "
        "sharegpt's conversations become messages, with human as user and gpt as assistant.",
    )
    on_bad_row: Literal["refuse", "skip"] | None = key(
        "What to do with a row that cannot be trained on: refuse the job (if absent), or skip it, counted and named."
    )
    max_bad_share: Share | None = key(
        f"With on_bad_row skip: the largest share of bad rows. {defaults.MAX_BAD_SHARE} if absent."
    )
    examples: Annotated[int, Field(ge=1, le=1000000000)] | None = key("Train on the first N rows: a smoke test.")
    added_tokens: ShortTexts | None = key(
        "Texts that become tokens of their own, such as [<tool_call>]: the tokenizer of the result has them, and "
        "their rows are trained, with adapters too. None if absent."
    )
    shuffle: bool | None = key("Draw a new order of rows in every epoch, from training.seed. true if absent.")


class ValidationSection(Section):
    """Evaluation while training. Needs data.validation_path."""

    enabled: bool | None = key(
        "Whether to evaluate. true if absent; without a file the status notes that nothing is evaluated."
    )
    evaluation_strategy: Literal["no", "steps", "epoch"] | None = key(
        "By steps (if absent), by epoch, or not at all."
    )
    eval_steps: Annotated[int, Field(ge=0, le=100000000)] | None = key(
        "Optimizer steps between evaluations. 0 or absent: at the end of every epoch."
    )
    save_best_model_at_end: bool | None = key("The best evaluated weights become the result. true if absent.")
    metric_for_best_model: Literal["val.loss", "eval_loss"] | None = key(
        "What best means: val.loss, also named eval_loss.",
        instead="Set val.loss, or leave it out. Evaluation measures the loss only; accuracy and BLEU are not "
        "supported yet.",
    )
    greater_is_better: bool | None = key("Must be false or absent: a loss is better when smaller.")


_TARGETS = (
    "Layers that get adapters: ends of their names, or regular expressions of whole names, such as "
    rf".*layers\.[0-7]\..*_proj; or {defaults.LORA_TARGETS} (if absent)."
)


class AdapterSizes(Section):
    """What every published spelling of adapters has."""

    r: Rank | None = key(f"Rank of the adapters. {defaults.LORA_RANK} if absent.")
    alpha: Alpha | None = key(
        f"Scale: the adapter's output is multiplied by alpha / r. {defaults.LORA_ALPHA_PER_RANK} r if absent, or "
        f"{defaults.LORA_ALPHA_PER_RANK} sqrt(r) with use_rslora: {defaults.LORA_ALPHA_PER_RANK} times."
    )
    dropout: Dropout | None = key(f"Dropout on the adapter's input. {defaults.LORA_DROPOUT:g} if absent.")
    target_modules: ShortTexts | None = key(_TARGETS)


class Adapter(AdapterSizes):
    """Low-rank adapters."""

    target_modules: Targets | None = key(f"{_TARGETS} [] beside target_parameters: none.")
    layers_to_transform: Annotated[tuple[LayerNumber, ...], Field(min_length=1, max_length=1024)] | None = key(
        "Numbers of the layers that get adapters, from 0. All if absent."
    )
    rank_pattern: Annotated[dict[str, Rank], Field(max_length=64)] | None = key(
        "Other ranks: regular expression of the end of a layer's name -> rank; of several, the longest holds."
    )
    alpha_pattern: Annotated[dict[str, Alpha], Field(max_length=64)] | None = key("Other alphas, as rank_pattern.")
    modules_to_save: ShortTexts | None = key(
        "Modules that are trained in full beside the adapters, such as [embed_tokens, lm_head]: ends of their names. "
        "None if absent. Where embedding and output head share a weight, either name trains it for both."
    )
    target_parameters: ShortTexts | None = key(
        "Parameters of many matrices that get adapters, a pair for each matrix: ends of their names. For experts "
        "[mlp.experts.gate_up_proj, mlp.experts.down_proj]. None if absent. Without dropout and use_dora."
    )
    trainable_tokens: ShortTexts | None = key(
        "Tokens whose rows of embedding and output head are trained beside the adapters, such as [<|im_start|>], by "
        "their texts. None if absent."
    )
    bias: Literal["none", "all", "lora_only"] | None = key(
        "Biases of the base that are trained beside the adapters: none, all, or those of layers that have an adapter "
        f"(lora_only). {defaults.LORA_BIAS} if absent."
    )
    from_: Name | None = key(
        "Training continues from this adapter, a LoRA adapter on the same base: its folder, a URI, or org/name of "
        "the Hugging Face Hub. Rank, alpha and layers are those of the adapter.",
        alias="from",
    )
    use_rslora: bool | None = key(
        "true: the adapter's output is multiplied by alpha / sqrt(r), which suits large ranks. false if absent."
    )
    use_dora: bool | None = key(
        "true: train the lengths of the rows of each weight apart from their directions (DoRA), which is slower. "
        "false if absent."
    )
    init_lora_weights: AdapterStart | None = key(
        "How adapters begin: without an effect (default, gaussian), or with a part of the base that is taken out of "
        "it (olora; pissa; pissa_niter_N, which is faster and less exact). The result is an adapter of the unchanged "
        f"base all the same. {defaults.LORA_INIT} if absent.",
        instead="Set default, gaussian, olora, pissa or pissa_niter_4 (or 1, 2, 8, 16, 32, 64), or leave it out. "
        "loftq, corda, eva and others are not supported.",
    )


class Quantization(Section):
    """How QLoRA stores the matrices of the base."""

    format: Literal["nf4", "fp4", "int8"] | None = key(
        "Four bits a number, with a scale for every 64, or eight, with a scale for every row. "
        f"{defaults.QUANTISATION_FORMAT} if absent.",
        instead="Set nf4, fp4 or int8, or leave it out.",
    )
    double_quant: bool | None = key(
        "Store the scales of four bits in eight: 0.4 bits less per parameter. "
        f"{str(defaults.DOUBLE_QUANT).lower()} if absent. Not with int8."
    )


class Training(Section):
    """Method, checkpoints, logging."""

    mode: Literal["fft", "full", "full_finetune", "lora", "qlora", "sft_offline"] | None = key(
        "Full finetuning or adapters; sft_offline leaves that to the other keys."
    )
    use_qlora: bool | None = key(
        "true: adapters on a quantised base (training.quantization), also where another key says lora. Not with full "
        "finetuning."
    )
    validation: ValidationSection | None = key("Evaluation while training.")
    lora: Adapter | None = key("Low-rank adapters.")
    quantization: Quantization | None = key("How QLoRA stores the base.")
    seed: Annotated[int, Field(ge=0, le=4294967295)] | None = key(
        f"Seed of row order, dropout and new weights. {defaults.SEED} if absent."
    )
    deterministic: bool | None = key(
        "Use only kernels that give the same bits every time: slower, on GPUs. false if absent."
    )
    save_steps: Annotated[int, Field(ge=0, le=100000000)] | None = key(
        "Optimizer steps between checkpoints. 0 or absent: at the end of every epoch."
    )
    save_total_limit: Annotated[int, Field(ge=1, le=1000)] | None = key(
        f"Checkpoints that stay. {defaults.SAVE_TOTAL_LIMIT} if absent."
    )
    logging_steps: Annotated[int, Field(ge=1, le=1000000)] | None = key(
        f"Optimizer steps between progress records. {defaults.LOGGING_STEPS} if absent."
    )


class Parallelism(Section):
    """How the model is spread over accelerators. Keys of an engine that is off change nothing."""

    use_deepspeed: bool | None = key("Shard with DeepSpeed ZeRO. Not together with fsdp.")
    deepspeed_stage: Annotated[int, Field(ge=0, le=3)] | None = key(
        f"ZeRO stage; {defaults.DEEPSPEED_STAGE} if absent. 0 is plain data parallel."
    )
    deepspeed_config: Annotated[dict[str, Any], Field(max_length=64)] | None = key(
        "A DeepSpeed dictionary, as other trainers take it: its values are read as keys of this job, and refused by "
        "name where they have no meaning here. auto is what the job says elsewhere. Implies use_deepspeed."
    )
    offload_optimizer_device: Literal["none", "cpu"] | None = key(
        "cpu: DeepSpeed ZeRO keeps the optimizer's state, its fp32 weights among it, in the memory of the host and "
        "updates there: slower, with less memory of the GPU, on one GPU too. Results are the same. none if absent; "
        "nothing is moved to a disk."
    )
    offload_param_device: Literal["none", "cpu"] | None = key(
        "cpu: stage 3 of DeepSpeed ZeRO keeps weights in the memory of the host while their layer does not compute. "
        "none if absent."
    )
    fsdp: bool | None = key(
        "true: shard with PyTorch FSDP; false: do not. If absent, full finetuning on several GPUs is sharded. "
        "Not together with use_deepspeed."
    )
    fsdp_sharding_strategy: Annotated[str, Field(min_length=1, max_length=32)] | None = key(
        f"{defaults.FSDP_SHARDING_STRATEGY} (if absent), hybrid_shard, which shards inside each node and replicates "
        "across nodes, or no_shard, which is plain data parallel."
    )
    fsdp_auto_wrap_policy: Annotated[str, Field(min_length=1, max_length=64)] | None = key(
        "transformer_block (if absent): every decoder layer is a shard group."
    )
    fsdp_use_orig_params: bool | None = informational("Keep original parameters.", "FSDP2 always does")
    bf16: bool | None = key("Compute in bfloat16. true if absent, on GPUs. Not together with fp16.")
    fp16: bool | None = key("Compute in float16, with a dynamic loss scale. Not together with bf16.")
    rounding: Literal["stochastic", "nearest"] | None = key(
        "How fp32 weights become the bf16 weights that the model computes with. "
        f"{defaults.ROUNDING} if absent: up or down at random, so that small updates count at once. Only with bf16. "
        "DeepSpeed ZeRO has nearest alone."
    )
    weights: Literal["fp32", "bf16"] | None = key(
        f"What the optimizer keeps of each weight. {defaults.WEIGHTS} if absent. bf16, for full finetuning in bf16: "
        "only the weight that the model computes with, rounded stochastically after each update; 4 bytes less per "
        "parameter."
    )
    tf32: bool | None = key(
        "Multiply fp32 matrices in TensorFloat-32: faster and less precise. Needs a GPU of NVIDIA Ampere or newer. "
        "false if absent."
    )
    tensor_parallel_size: Width | None = key("Accelerators that share one layer's matrices. 1 if absent.")
    pipeline_parallel_size: Width | None = key("Stages the layers are split into. 1 if absent.")
    activation_checkpointing: Recomputation | None = key(
        "Layers that recompute their activations in the backward pass, for less memory and the same results: none or "
        "false; selective, every second; full or true, which takes about a quarter more time; auto, as few as the "
        f"memory of the GPU allows, and none on a CPU. {defaults.ACTIVATION_CHECKPOINTING} if absent."
    )
    topology: Topology | None = key("The layout again. Must agree with compute.")


class Hyperparameters(Section):
    """Numbers of the optimization."""

    n_epochs: Annotated[int, Field(ge=1, le=10000)] | None = key(
        f"Passes over the rows. {defaults.EPOCHS} if absent."
    )
    total_steps: Steps | None = key("Stop after this many optimizer steps, even within an epoch.")
    train_steps: Steps | None = key("Another name of total_steps.")
    steps: Steps | None = key("Another name of total_steps.")
    batch_size: Rows | None = key("Another name of per_device_batch.")
    per_device_batch: Rows | None = key("Micro batch: rows of one forward pass on one accelerator. 1 if absent.")
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=1048576)] | None = key(
        "Forward passes per optimizer step. If absent: what global_batch asks for, else 1."
    )
    global_batch: Rows | None = key(
        "Rows per optimizer step. Sets gradient_accumulation_steps where that is absent; otherwise a check."
    )
    sequence_length: Tokens | None = key(
        "Longest row in tokens; longer rows are cut and counted. "
        f"{defaults.SEQUENCE_LENGTH} if absent, or the model's own limit if that is smaller."
    )
    max_seq_length: Tokens | None = key("Another name of sequence_length.")
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = key(
        f"Peak learning rate. If absent: {_scientific(defaults.LEARNING_RATE_FFT)} for full finetuning, "
        f"{_scientific(defaults.LEARNING_RATE_ADAPTERS)} for adapters."
    )
    warmup_ratio: Share | None = key(
        f"Share of all steps in which the learning rate rises. {defaults.WARMUP_RATIO} if absent."
    )
    lr_scheduler_type: Literal["constant", "cosine", "linear"] | None = key(
        f"How the learning rate falls afterwards. {defaults.SCHEDULER} if absent."
    )
    weight_decay: Share | None = key(
        f"AdamW's decoupled weight decay, on matrices only. {defaults.WEIGHT_DECAY:g} if absent."
    )
    max_grad_norm: Annotated[float, Field(ge=0, le=1000000)] | None = key(
        f"Gradients are scaled down to this norm; 0 leaves them alone. {defaults.MAX_GRAD_NORM:g} if absent."
    )
    optim: Literal["adamw", "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit"] | None = key(
        "AdamW: adamw, adamw_torch or adamw_torch_fused; adamw_8bit or adamw_bnb_8bit keeps its moments in 2 bytes a "
        f"weight instead of 8. {defaults.OPTIMIZER} if absent.",
        instead="Set adamw or adamw_8bit, or leave it out. Paged AdamW (paged_adamw, paged_adamw_32bit, "
        "paged_adamw_8bit), which moves its moments between the memories of GPU and host, and other optimizers (sgd, "
        "adafactor, lion, muon) are not supported; where memory is short, set adamw_8bit, shard with "
        "hyperparameters.parallelism.fsdp or train adapters.",
    )
    train_kind: Literal["fft", "peft"] | None = key("fft: every weight. peft: adapters.")
    world_size: Gpus | None = key("As compute.gpu_count. Checked.")
    lora_rank: Rank | None = key("As training.lora.r.")
    lora_alpha: Alpha | None = key("As training.lora.alpha.")
    lora_dropout: Dropout | None = key("As training.lora.dropout.")
    lora_target_modules: ShortTexts | None = key("As training.lora.target_modules.")
    lora: AdapterSizes | None = key("As training.lora.")
    parallelism: Parallelism | None = key("How the model is spread over accelerators.")


class ModelConfig(Section):
    """What the base model can do."""

    supports_vision: bool | None = informational(
        "Whether it reads images.", "the model's own configuration defines it"
    )
    max_images_per_message: Annotated[int, Field(ge=0, le=1024)] | None = informational(
        "Images of one message.", "rows with images are refused"
    )
    max_model_len: Tokens | None = key("Longest context of the model; caps sequence_length.")
