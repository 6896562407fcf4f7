"""What the schema alone cannot express: required choices, exclusions, sums that must agree.

Each rule is written once and evaluated twice: as CEL by the API server, as Python by `finetune validate`.
A rule is about the job only; what this version's trainer can do is in capabilities.py, and what one cluster
allows is in the operator's settings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache

from finetune_api.resource.aliases import (
    DATA,
    DATA_PARALLEL,
    GROUPS,
    LORA_ALPHA,
    LORA_R,
    LORA_TARGETS,
    MODEL,
    NODES,
    PARALLELISM,
    PER_NODE,
    PIPELINE,
    TENSOR,
    TOTAL,
)
from finetune_api.resource.key_table import Fate, declared
from finetune_api.runtime.choices import LoraInit

from . import predicates, uris
from .predicates import (
    absent,
    agree,
    all_of,
    among,
    any_of,
    at_most,
    constant,
    divides,
    equal,
    first,
    fits,
    items_lack,
    lacks,
    names_fit,
    names_lack,
    not_,
    present,
    times,
)
from .problem import Problem


@dataclass(frozen=True)
class Rule:
    """`must` hold; otherwise `path` (relative to spec) has a problem."""

    path: str
    reason: str
    must: predicates.Predicate
    message: str
    remedy: str
    shows: tuple[str, ...] = ()
    """Keys whose values the message shows."""
    cluster_only: bool = False
    """Whether the rule is about pods: a local run skips it."""

    def problem(self, spec: predicates.Spec) -> Problem:
        given = [f"{p} = {predicates.find(spec, p)!r}" for p in self.shows if predicates.find(spec, p) is not None]
        message = self.message + (f" Given: {', '.join(given)}." if given else "")
        return Problem(f"spec.{self.path}", self.reason, message, self.remedy)


_LAYOUT = TOTAL + NODES + PER_NODE
_MESH = _LAYOUT + TENSOR + PIPELINE + DATA_PARALLEL

_nodes, _per_node = first(NODES, 1), first(PER_NODE, 1)
_tensor, _pipeline = first(TENSOR, 1), first(PIPELINE, 1)
_model_parallel = times(_tensor, _pipeline)
_parallel = times(first(DATA_PARALLEL, 1), _model_parallel)
_fsdp = among(f"{PARALLELISM}.fsdp", True)
_wants_qlora = any_of(among("training.use_qlora", True), among("training.mode", "qlora"))
_wants_adapters = any_of(_wants_qlora, among("training.mode", "lora"))
_wants_all = among("training.mode", "full", "full_finetune", "fft")
_PRECISION = (f"{PARALLELISM}.bf16", f"{PARALLELISM}.fp16", "compute.gpu_type")
_computes_bf16 = any_of(among(f"{PARALLELISM}.bf16", True),
                        all_of(not_(among(f"{PARALLELISM}.bf16", False)), not_(among(f"{PARALLELISM}.fp16", True)),
                               lacks("compute.gpu_type", "^(?i:cpu)$")))  # fmt: skip
"""What finetune_plan.engine.resolve_precision decides."""
_bf16_weights = among(f"{PARALLELISM}.weights", "bf16")

_several_nodes = not_(all_of(at_most(_nodes, constant(1)), at_most(first(TOTAL, 0), first(PER_NODE, 16384))))
"""More than one is asked for, or follows from gpu_count; a key that is absent does not count."""
_ephemeral = among("output.ephemeral", True)
_OF_NEW_ADAPTERS = (
    *LORA_R, *LORA_ALPHA, *LORA_TARGETS,
    *(f"training.lora.{key}" for key in ("layers_to_transform", "rank_pattern", "alpha_pattern", "use_rslora",
                                         "use_dora", "init_lora_weights", "modules_to_save", "bias",
                                         "target_parameters", "trainable_tokens")),
)  # fmt: skip
"""What an adapter that training continues from decides."""
_OF_BASE = tuple(init.value for init in LoraInit if init.changes_base)
"""Adapters that begin with a part of the base."""
_LABEL_KEY = (r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?"
              r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")  # fmt: skip

RULES: tuple[Rule, ...] = (
    Rule("job.model", "MissingModel", present(*MODEL), "No base model is named.",
         "Set job.model, for example Qwen/Qwen3-4B."),
    Rule("job.data", "MissingData", present(*DATA), "No training data is named.",
         "Set job.data to a JSONL file, or give --dataset."),
    Rule("compute.gpu_type", "missing_gpu_type", present("compute.gpu_type"),
         "No kind of accelerator is named (missing_gpu_type).",
         "Set compute.gpu_type, for example H100, or CPU to train without accelerators."),
    *(Rule(group[0], "Contradiction", agree(*group), "Keys with the same meaning have different values.",
           f"Keep one of {', '.join(group)}, or give them the same value.", group) for group in GROUPS),
    Rule("compute.gpu_count", "LayoutContradiction",
         any_of(not_(all_of(present(*TOTAL), present(*NODES), present(*PER_NODE))),
                equal(first(TOTAL, 1), times(_nodes, _per_node))),
         "gpu_count is not nodes x gpus_per_node.", "Correct one of the three, or leave one out.", _LAYOUT),
    Rule("compute.nodes", "LayoutContradiction", divides(_nodes, first(TOTAL, 0)),
         "gpu_count is not a multiple of nodes.", "Make gpu_count a multiple of nodes.", _LAYOUT),
    Rule("compute.gpus_per_node", "LayoutContradiction", divides(_per_node, first(TOTAL, 0)),
         "gpu_count is not a multiple of gpus_per_node.", "Correct one of the two.", _LAYOUT),
    Rule("compute.gpu_count", "LayoutContradiction",
         any_of(present(*PER_NODE), at_most(first(TOTAL, 0), times(constant(64), _nodes))),
         "gpu_count asks for more than 64 accelerators in one node.", "Set compute.nodes.", _LAYOUT),
    Rule(f"{PARALLELISM}.tensor_parallel_size", "MeshContradiction",
         all_of(any_of(not_(present(*TOTAL)), divides(_model_parallel, first(TOTAL, 1))),
                any_of(present(*TOTAL), divides(_model_parallel, times(_nodes, _per_node)))),
         "tensor_parallel_size x pipeline_parallel_size does not divide the number of accelerators.",
         "Choose sizes whose product divides gpu_count.", _MESH),
    Rule(f"{PARALLELISM}.tensor_parallel_size", "MeshContradiction",
         any_of(equal(_tensor, constant(1)),
                all_of(present(*PER_NODE), divides(_tensor, _per_node)),
                all_of(not_(present(*PER_NODE)), present(*TOTAL),
                       divides(times(_tensor, _nodes), first(TOTAL, 1)))),
         "Tensor parallelism would leave the node: its ranks exchange every layer's activations.",
         "Choose a tensor_parallel_size that divides the accelerators of one node.", _MESH),
    Rule("data.topology.data_parallel", "MeshContradiction",
         any_of(not_(present(*DATA_PARALLEL)),
                all_of(present(*TOTAL), equal(_parallel, first(TOTAL, 1))),
                all_of(not_(present(*TOTAL)), equal(_parallel, times(_nodes, _per_node)))),
         "data_parallel x tensor_parallel x pipeline_parallel is not the number of accelerators.",
         "Leave data_parallel out: it follows from the others.", _MESH),
    Rule(f"{PARALLELISM}.fsdp", "EnginesExclude",
         not_(all_of(_fsdp, among(f"{PARALLELISM}.use_deepspeed", True))),
         "DeepSpeed ZeRO and FSDP shard the same states, so a job uses one of them: "
         "'ZeRO-2/3 and optionally FSDP' means ZeRO or FSDP.",
         "Set use_deepspeed or fsdp to false.", (f"{PARALLELISM}.use_deepspeed", f"{PARALLELISM}.fsdp")),
    Rule(f"{PARALLELISM}.fsdp_sharding_strategy", "UnknownValue",
         any_of(not_(_fsdp), fits(f"{PARALLELISM}.fsdp_sharding_strategy", "^(?i:(full|hybrid|no)_shard)$")),
         "FSDP can shard over all ranks, over those of a node, or not at all.",
         "Set full_shard, hybrid_shard or no_shard, or leave it out.",
         (f"{PARALLELISM}.fsdp_sharding_strategy",)),
    Rule(f"{PARALLELISM}.fsdp_auto_wrap_policy", "UnknownValue",
         any_of(not_(_fsdp), fits(f"{PARALLELISM}.fsdp_auto_wrap_policy",
                                  "^(?i:transformer_block|transformer_based_wrap)$")),
         "Every decoder layer is one shard group; there is no other policy.",
         "Set transformer_block, or leave it out.", (f"{PARALLELISM}.fsdp_auto_wrap_policy",)),
    Rule(f"{PARALLELISM}.fp16", "PrecisionContradiction",
         not_(all_of(among(f"{PARALLELISM}.bf16", True), among(f"{PARALLELISM}.fp16", True))),
         "bf16 and fp16 are both true; the computation has one number format.", "Keep bf16."),
    Rule(f"{PARALLELISM}.rounding", "PrecisionContradiction",
         any_of(_computes_bf16, not_(present(f"{PARALLELISM}.rounding"))),
         "rounding is for bf16, but the job computes in another number format.",
         "Remove rounding, or set bf16 to true and fp16 to false.", (f"{PARALLELISM}.rounding", *_PRECISION)),
    Rule(f"{PARALLELISM}.weights", "PrecisionContradiction", any_of(_computes_bf16, not_(_bf16_weights)),
         "weights: bf16 keeps what the model computes with, but the job computes in another number format.",
         "Remove weights, or set bf16 to true and fp16 to false.", (f"{PARALLELISM}.weights", *_PRECISION)),
    Rule(f"{PARALLELISM}.rounding", "PrecisionContradiction",
         not_(all_of(_bf16_weights, among(f"{PARALLELISM}.rounding", "nearest"))),
         "Small updates of weights that are kept in bf16 would be lost altogether by rounding to the nearest.",
         "Remove rounding, or set weights to fp32.", (f"{PARALLELISM}.rounding", f"{PARALLELISM}.weights")),
    Rule(f"{PARALLELISM}.weights", "MethodContradiction",
         not_(all_of(_bf16_weights, any_of(_wants_adapters, among("hyperparameters.train_kind", "peft")))),
         "weights: bf16 is for full finetuning, but the job trains adapters, whose weights are fp32.",
         "Remove weights, or select full finetuning.",
         (f"{PARALLELISM}.weights", "training.use_qlora", "training.mode", "hyperparameters.train_kind")),
    Rule("hyperparameters.train_kind", "MethodContradiction",
         not_(all_of(_wants_adapters, among("hyperparameters.train_kind", "fft"))),
         "train_kind selects full finetuning, but use_qlora or mode selects adapters.",
         "Set train_kind to peft, or use_qlora to false and mode to full_finetune.",
         ("hyperparameters.train_kind", "training.use_qlora", "training.mode")),
    Rule("hyperparameters.train_kind", "MethodContradiction",
         not_(all_of(_wants_all, among("hyperparameters.train_kind", "peft"))),
         "train_kind selects adapters, but mode selects full finetuning.",
         "Set train_kind to fft, or mode to lora.", ("hyperparameters.train_kind", "training.mode")),
    Rule("training.use_qlora", "MethodContradiction",
         not_(all_of(_wants_all, among("training.use_qlora", True))),
         "use_qlora selects adapters, but mode selects full finetuning.",
         "Set use_qlora to false, or leave mode out.", ("training.use_qlora", "training.mode")),
    Rule("training.use_qlora", "MethodContradiction",
         not_(all_of(among("training.mode", "qlora"), among("training.use_qlora", False))),
         "use_qlora is false, but mode selects QLoRA.", "Remove use_qlora, or set mode to lora.",
         ("training.use_qlora", "training.mode")),
    Rule("training.quantization.double_quant", "Contradiction",
         not_(all_of(among("training.quantization.format", "int8"),
                     among("training.quantization.double_quant", True))),
         "int8 has one scale for each row, which double_quant does not make smaller.",
         "Remove double_quant, or set format to nf4.",
         ("training.quantization.double_quant", "training.quantization.format")),
    Rule("training.lora.from", "MethodContradiction",
         not_(all_of(present("training.lora.from"),
                     any_of(_wants_all, among("hyperparameters.train_kind", "fft")))),
         "from names an adapter to continue from, but the job trains all weights.",
         "Remove from, or select adapters (training.mode: lora).",
         ("training.lora.from", "training.mode", "hyperparameters.train_kind")),
    Rule("training.lora.from", "AdapterContradiction",
         not_(all_of(present("training.lora.from"), present(*_OF_NEW_ADAPTERS))),
         "Training continues from an adapter, which has its rank, alpha and layers already.",
         "Leave all keys of adapters but from and dropout out, or leave from out to begin a new adapter.",
         ("training.lora.from", *_OF_NEW_ADAPTERS)),
    Rule("training.lora.init_lora_weights", "AdapterContradiction",
         not_(all_of(among("training.lora.use_dora", True), among("training.lora.init_lora_weights", *_OF_BASE))),
         "use_dora trains the lengths of whole rows, but init_lora_weights takes a part of each row out of the base.",
         "Set use_dora to false, or init_lora_weights to default or gaussian.",
         ("training.lora.init_lora_weights", "training.lora.use_dora")),
    Rule("training.validation.greater_is_better", "UnknownValue",
         not_(among("training.validation.greater_is_better", True)),
         "A loss is better when it is smaller.", "Set greater_is_better to false, or leave it out."),
    *(Rule(p, "UnsupportedScheme", lacks(p, use.unread_pattern), use.unread_message, use.instead, (p,))
      for p, use in uris.KEYS.items()),
    *(Rule(p, "BadUri", fits(p, use.good_pattern), use.bad_message, uris.BAD_REMEDY, (p,))
      for p, use in uris.KEYS.items()),
    Rule("output", "OutputNotKept", any_of(present("output.uri"), _ephemeral),
         "The job has no output, so its result would be lost with its pods.",
         "Set output.uri to pvc://CLAIM/FOLDER, or output.ephemeral to true if the result may be lost. "
         "`finetune run` needs neither.", cluster_only=True),
    Rule("output.uri", "OutputNotKept", lacks("output.uri", "^[^:/]*(/|$)"),
         "A path is a folder inside the pods and is lost with them.",
         "Set output.uri to pvc://CLAIM/FOLDER. For `finetune run`, give --output with a folder of this machine.",
         ("output.uri",), cluster_only=True),
    Rule("output.merge", "MethodContradiction",
         not_(all_of(among("output.merge", True), any_of(_wants_all, among("hyperparameters.train_kind", "fft")))),
         "merge adds adapters to their base, but the job trains all weights, and its result is a model already.",
         "Remove merge, or select adapters (training.mode: lora).",
         ("output.merge", "training.mode", "hyperparameters.train_kind")),
    Rule("output.ephemeral", "Contradiction", not_(all_of(_ephemeral, present("output.uri"))),
         "output.uri keeps the result, but output.ephemeral allows it to be lost.", "Remove one of the two.",
         ("output.uri", "output.ephemeral")),
    Rule("output.ephemeral", "OutputNotShared", not_(all_of(_ephemeral, _several_nodes)),
         "All nodes of a job write to one output, but an ephemeral output is a folder inside one pod.",
         "Set output.uri to pvc://CLAIM/FOLDER on a claim that all nodes mount (ReadWriteMany), "
         "or ask for one node.", _LAYOUT, cluster_only=True),
    Rule("pods.env", "ForbiddenVariable",
         items_lack("pods.env", "^(LD_.*|PYTHON.*|NCCL_.*_PLUGIN|PET_.*|FINETUNE_.*|MASTER_(ADDR|PORT)|"
                                "((LOCAL|GROUP|ROLE|NODE)_)?RANK|((LOCAL|GROUP|ROLE)_)?WORLD_SIZE)$"),
         "Variables that change what code runs, or that the operator and the launcher set, may not be set "
         "(LD_*, PYTHON*, NCCL_*_PLUGIN, PET_*, FINETUNE_*, MASTER_ADDR, MASTER_PORT, RANK, LOCAL_RANK, GROUP_RANK, "
         "ROLE_RANK, NODE_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, GROUP_WORLD_SIZE, ROLE_WORLD_SIZE).",
         "Remove them. What ranks there are follows from compute; code belongs into the image."),
    *(Rule(p, "BadQuantity", fits(p, pattern), message, remedy, (p,)) for p, pattern, message, remedy in (
        ("pods.cpu", r"^[0-9.]*[1-9]", "The quantity is zero.", "Set the CPUs of a pod, for example 8."),
        *((key, r"^[0-9.]*[1-9][0-9.]*([kMGTP]i?)?$", "The quantity is zero, or thousandths of a byte (m).",
           "Set bytes, for example 64Gi.") for key in ("pods.memory", "pods.sharedMemory")))),
    *(Rule(p, "ReservedName", names_lack(p, r"^(.*\.)?(finetune\.dev|kubeflow\.org|kubernetes\.io|k8s\.io)/"),
           "Names under finetune.dev, kubeflow.org, kubernetes.io and k8s.io belong to controllers.",
           "Use a prefix of your own.") for p in ("pods.labels", "pods.annotations")),
    Rule("pods.annotations", "ReservedAnnotation",
         names_lack("pods.annotations", r"^(((devices|networking)\.gke|k8s\.v1\.cni\.cncf|v1\.multus-cni)\.io/|"
                                        r"io\.kubernetes\.cri-o)"),
         "Names of devices.gke.io, networking.gke.io, k8s.v1.cni.cncf.io, v1.multus-cni.io and io.kubernetes.cri-o "
         "give pods devices and networks of the node, which an administrator allows.",
         "Remove it, and name a network profile that has it: network.profile."),
    *(Rule(p, "BadLabelKey", names_fit(p, _LABEL_KEY), "A key is not a legal name of a label or annotation.",
           "Use at most 63 letters, digits, '-', '_' and '.', with a DNS name and '/' before them if you like.")
      for p in ("pods.labels", "pods.annotations", "pods.nodeSelector")),
)  # fmt: skip


def refusals() -> Iterator[Rule]:
    """One rule for every key whose fate is refused."""
    for path, fate, because in declared():
        if fate is Fate.REFUSED:
            yield Rule(path, "RefusedKey", absent(path), f"This key is refused: {because}.", "Remove it.")


@cache
def all_rules() -> tuple[Rule, ...]:
    return (*RULES, *refusals())


def applies(rule: Rule, malformed: Collection[str]) -> bool:
    """Whether the rule reads only keys of the right shape; `malformed` are paths from the root."""
    parts = [path.partition("[")[0].split(".") for path in malformed]
    read = [["spec", *path.split(".")] for path in rule.must.paths]
    return not any(malformed_key[: len(key)] == key[: len(malformed_key)] for malformed_key in parts for key in read)
