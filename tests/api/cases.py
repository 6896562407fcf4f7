"""For every rule a job that breaks it, and one that only just does not. Read by test_rules.py and test_server.py."""

from __future__ import annotations

from dataclasses import dataclass

from builders import Json
from finetune_api.validation import uris

P, H, V = "hyperparameters.parallelism", "hyperparameters", "training.validation"
NAMES_DIFFER = "Keys with the same meaning have different values."
NOT_YET = {path: use.unread_message.partition(" not ")[0] for path, use in uris.KEYS.items()}
NOT_VALID = "This URI is not valid here: "
URIS = {
    "job.model": "hf://a/b@main", "policy.model_name": "a/b", "policy.source": "../models/here",
    "job.data": "pvc://claim/..rows", "job.data_path": "configmap://rows/train.jsonl",
    "data.validation_path": "../rows.jsonl", "output.uri": "pvc://claim", "training.lora.from": "pvc://claim/adapter",
}  # fmt: skip
WITHOUT_NAMES: dict[str, Json] = {path: {} for path in URIS} | {
    "policy.model_name": {"job.model": None},
    "policy.source": {"job.model": None},
    "job.data_path": {"job.data": None},
}
"""What a job leaves out that names the same thing by another key."""
BAD_KEY = "A key is not a legal name of a label or annotation."
RESERVED = "Names under finetune.dev, kubeflow.org, kubernetes.io and k8s.io belong to controllers."
RL = "it belongs to reinforcement learning"


@dataclass(frozen=True)
class Case:
    """`wrong` and `near` change the job of builders.FINE; None removes a key."""

    sentence: str
    path: str
    reason: str
    message: str
    """The beginning of the rule's own sentence."""
    wrong: Json
    near: Json


CASES = (
    Case("a job names a model", "job.model", "MissingModel", "No base model is named.",
         {"job.model": None}, {"job.model": None, "policy.source": "a/b"}),
    Case("a job names data", "job.data", "MissingData", "No training data is named.",
         {"job.data": None}, {"job.data": None, "job.data_path": "rows.jsonl"}),
    Case("a job names a kind of GPU", "compute.gpu_type", "missing_gpu_type",
         "No kind of accelerator is named (missing_gpu_type).",
         {"compute.gpu_type": None}, {"compute.gpu_type": "CPU"}),
    # Names of the same thing
    Case("two names of the model agree", "job.model", "Contradiction", NAMES_DIFFER,
         {"policy.model_name": "a/b"}, {"policy.model_name": "Qwen/Qwen3-4B"}),
    Case("two names of the data agree", "job.data", "Contradiction", NAMES_DIFFER,
         {"job.data_path": "x.jsonl"}, {"job.data_path": "pvc://rows/train.jsonl"}),
    Case("three places that say nodes agree", "compute.nodes", "Contradiction", NAMES_DIFFER,
         {"compute.nodes": 2, "data.topology.nodes": 2, f"{P}.topology.nodes": 4},
         {"compute.nodes": 2, "data.topology.nodes": 2, f"{P}.topology.nodes": 2}),
    Case("two places that say GPUs of a node agree", "compute.gpus_per_node", "Contradiction", NAMES_DIFFER,
         {"data.topology.gpus_per_node": 8, f"{P}.topology.gpus_per_node": 4},
         {"data.topology.gpus_per_node": 8, f"{P}.topology.gpus_per_node": 8}),
    Case("world_size is gpu_count", "compute.gpu_count", "Contradiction", NAMES_DIFFER,
         {f"{H}.world_size": 4}, {f"{H}.world_size": 8}),
    Case("every name of the tensor-parallel size agrees", f"{P}.tensor_parallel_size", "Contradiction",
         NAMES_DIFFER, {f"{P}.tensor_parallel_size": 2, "compute.topology.tensor_parallel": 4},
         {f"{P}.tensor_parallel_size": 2, "compute.topology.tensor_parallel": 2}),
    Case("two names of the replicas agree", "data.topology.data_parallel", "Contradiction", NAMES_DIFFER,
         {"data.topology.data_parallel": 8, f"{P}.topology.data_parallel": 4},
         {"data.topology.data_parallel": 8, f"{P}.topology.data_parallel": 8}),
    Case("two names of the micro batch agree", f"{H}.per_device_batch", "Contradiction", NAMES_DIFFER,
         {f"{H}.per_device_batch": 1, f"{H}.batch_size": 2}, {f"{H}.per_device_batch": 2, f"{H}.batch_size": 2}),
    Case("three names of the last step agree", f"{H}.total_steps", "Contradiction", NAMES_DIFFER,
         {f"{H}.train_steps": 10, f"{H}.steps": 11}, {f"{H}.train_steps": 10, f"{H}.steps": 10}),
    Case("two names of the sequence length agree", f"{H}.sequence_length", "Contradiction", NAMES_DIFFER,
         {f"{H}.sequence_length": 512, f"{H}.max_seq_length": 513},
         {f"{H}.sequence_length": 512, f"{H}.max_seq_length": 512}),
    Case("every spelling of the rank agrees", f"{H}.lora.r", "Contradiction", NAMES_DIFFER,
         {f"{H}.lora_rank": 8, "training.lora.r": 16}, {f"{H}.lora_rank": 8, "training.lora.r": 8, "lora.r": 8}),
    Case("every spelling of alpha agrees", f"{H}.lora.alpha", "Contradiction", NAMES_DIFFER,
         {f"{H}.lora_alpha": 8, "lora.alpha": 8.5}, {f"{H}.lora_alpha": 8, "lora.alpha": 8.0}),
    Case("every spelling of the adapters' dropout agrees", f"{H}.lora.dropout", "Contradiction", NAMES_DIFFER,
         {f"{H}.lora_dropout": 0.1, f"{H}.lora.dropout": 0.2}, {f"{H}.lora_dropout": 0.1, f"{H}.lora.dropout": 0.1}),
    Case("every spelling of the adapters' layers agrees", f"{H}.lora.target_modules", "Contradiction", NAMES_DIFFER,
         {f"{H}.lora_target_modules": ["q"], "lora.target_modules": ["q", "v"]},
         {f"{H}.lora_target_modules": ["q", "v"], "lora.target_modules": ["q", "v"]}),
    # Sums
    Case("gpu_count is nodes times gpus_per_node", "compute.gpu_count", "LayoutContradiction",
         "gpu_count is not nodes x gpus_per_node.",
         {"compute.nodes": 2, "compute.gpus_per_node": 8}, {"compute.nodes": 2, "compute.gpus_per_node": 4}),
    Case("nodes divides gpu_count", "compute.nodes", "LayoutContradiction",
         "gpu_count is not a multiple of nodes.", {"compute.nodes": 3}, {"compute.nodes": 4}),
    Case("gpus_per_node divides gpu_count", "compute.gpus_per_node", "LayoutContradiction",
         "gpu_count is not a multiple of gpus_per_node.", {"compute.gpus_per_node": 3}, {"compute.gpus_per_node": 4}),
    Case("one node holds at most 64 GPUs", "compute.gpu_count", "LayoutContradiction",
         "gpu_count asks for more than 64 accelerators in one node.",
         {"compute.gpu_count": 65}, {"compute.gpu_count": 64}),
    Case("tensor times pipeline divides the GPUs", f"{P}.tensor_parallel_size", "MeshContradiction",
         "tensor_parallel_size x pipeline_parallel_size does not divide the number of accelerators.",
         {f"{P}.tensor_parallel_size": 4, f"{P}.pipeline_parallel_size": 4},
         {f"{P}.tensor_parallel_size": 4, f"{P}.pipeline_parallel_size": 2}),
    Case("tensor parallelism stays in the node", f"{P}.tensor_parallel_size", "MeshContradiction",
         "Tensor parallelism would leave the node",
         {"compute.nodes": 2, f"{P}.tensor_parallel_size": 8}, {"compute.nodes": 2, f"{P}.tensor_parallel_size": 4}),
    Case("the replicas are what tensor and pipeline leave", "data.topology.data_parallel", "MeshContradiction",
         "data_parallel x tensor_parallel x pipeline_parallel is not the number of accelerators.",
         {"data.topology.data_parallel": 8, f"{P}.tensor_parallel_size": 2},
         {"data.topology.data_parallel": 4, f"{P}.tensor_parallel_size": 2}),
    # Choices
    Case("DeepSpeed and FSDP exclude each other", f"{P}.fsdp", "EnginesExclude",
         "DeepSpeed ZeRO and FSDP shard the same states",
         {f"{P}.fsdp": True, f"{P}.use_deepspeed": True}, {f"{P}.fsdp": False, f"{P}.use_deepspeed": True}),
    Case("FSDP knows three strategies", f"{P}.fsdp_sharding_strategy", "UnknownValue",
         "FSDP can shard over all ranks, over those of a node, or not at all.",
         {f"{P}.fsdp": True, f"{P}.fsdp_sharding_strategy": "full_shard\n"},
         {f"{P}.fsdp": True, f"{P}.fsdp_sharding_strategy": "FULL_SHARD"}),
    Case("FSDP knows one wrapping", f"{P}.fsdp_auto_wrap_policy", "UnknownValue",
         "Every decoder layer is one shard group; there is no other policy.",
         {f"{P}.fsdp": True, f"{P}.fsdp_auto_wrap_policy": "by_size"},
         {f"{P}.fsdp": False, f"{P}.fsdp_auto_wrap_policy": "by_size"}),
    Case("the computation has one number format", f"{P}.fp16", "PrecisionContradiction",
         "bf16 and fp16 are both true; the computation has one number format.",
         {f"{P}.bf16": True, f"{P}.fp16": True}, {f"{P}.bf16": False, f"{P}.fp16": True}),
    Case("a rounding is for bf16", f"{P}.rounding", "PrecisionContradiction", "rounding is for bf16",
         {f"{P}.rounding": "stochastic", f"{P}.fp16": True}, {f"{P}.rounding": "stochastic", f"{P}.fp16": False}),
    Case("bf16 weights are for bf16", f"{P}.weights", "PrecisionContradiction",
         "weights: bf16 keeps what the model computes with",
         {f"{P}.weights": "bf16", "compute.gpu_type": "CPU"},
         {f"{P}.weights": "bf16", "compute.gpu_type": "CPU", f"{P}.bf16": True}),
    Case("bf16 weights are rounded stochastically", f"{P}.rounding", "PrecisionContradiction",
         "Small updates of weights that are kept in bf16 would be lost",
         {f"{P}.weights": "bf16", f"{P}.rounding": "nearest"},
         {f"{P}.weights": "fp32", f"{P}.rounding": "nearest"}),
    Case("adapters have fp32 weights", f"{P}.weights", "MethodContradiction", "weights: bf16 is for full finetuning",
         {f"{P}.weights": "bf16", "training.mode": "lora"}, {f"{P}.weights": "fp32", "training.mode": "lora"}),
    Case("QLoRA is not full finetuning", f"{H}.train_kind", "MethodContradiction",
         "train_kind selects full finetuning, but use_qlora or mode selects adapters.",
         {f"{H}.train_kind": "fft", "training.use_qlora": True},
         {f"{H}.train_kind": "fft", "training.use_qlora": False}),
    Case("full finetuning has no adapters", f"{H}.train_kind", "MethodContradiction",
         "train_kind selects adapters, but mode selects full finetuning.",
         {f"{H}.train_kind": "peft", "training.mode": "full"}, {f"{H}.train_kind": "peft", "training.mode": "lora"}),
    Case("full finetuning has nothing to merge", "output.merge", "MethodContradiction",
         "merge adds adapters to their base, but the job trains all weights",
         {"output.merge": True, "training.mode": "full"}, {"output.merge": True, "training.mode": "lora"}),
    Case("full finetuning continues from no adapter", "training.lora.from", "MethodContradiction",
         "from names an adapter to continue from, but the job trains all weights.",
         {"training.lora.from": "pvc://models/one", "training.mode": "full"},
         {"training.lora.from": "pvc://models/one", "training.mode": "lora"}),
    Case("an adapter to continue from has its rank", "training.lora.from", "AdapterContradiction",
         "Training continues from an adapter, which has its rank, alpha and layers already.",
         {"training.lora.from": "pvc://models/one", "lora.r": 8},
         {"training.lora.from": "pvc://models/one", "lora.dropout": 0.1}),
    Case("a row of int8 has one scale", "training.quantization.double_quant", "Contradiction",
         "int8 has one scale for each row, which double_quant does not make smaller.",
         {"training.use_qlora": True, "training.quantization": {"format": "int8", "double_quant": True}},
         {"training.use_qlora": True, "training.quantization": {"format": "int8", "double_quant": False}}),
    Case("DoRA has the lengths of whole rows", "training.lora.init_lora_weights", "AdapterContradiction",
         "use_dora trains the lengths of whole rows, but init_lora_weights takes a part of each row out of the base.",
         {"training.lora": {"use_dora": True, "init_lora_weights": "pissa_niter_4"}},
         {"training.lora": {"use_dora": True, "init_lora_weights": "gaussian"}}),
    Case("use_qlora is not full finetuning", "training.use_qlora", "MethodContradiction",
         "use_qlora selects adapters, but mode selects full finetuning.",
         {"training.use_qlora": True, "training.mode": "fft"},
         {"training.use_qlora": True, "training.mode": "sft_offline"}),
    Case("use_qlora false is not QLoRA", "training.use_qlora", "MethodContradiction",
         "use_qlora is false, but mode selects QLoRA.",
         {"training.use_qlora": False, "training.mode": "qlora"},
         {"training.use_qlora": False, "training.mode": "lora"}),
    Case("a greater loss is not better", f"{V}.greater_is_better", "UnknownValue",
         "A loss is better when it is smaller.", {f"{V}.greater_is_better": True}, {f"{V}.greater_is_better": False}),
    # URIs; test_uris.py has the table
    *(Case(f"{path} names a scheme that somebody reads", path, "UnsupportedScheme", NOT_YET[path],
           WITHOUT_NAMES[path] | {path: "s3://bucket/x"},
           WITHOUT_NAMES[path] | {path: good}) for path, good in URIS.items()),
    *(Case(f"{path} is a URI", path, "BadUri", NOT_VALID,
           WITHOUT_NAMES[path] | {path: "pvc://claim/../other"}, WITHOUT_NAMES[path] | {path: good})
      for path, good in URIS.items()),
    # Outputs
    Case("a job says where its result goes", "output", "OutputNotKept", "The job has no output",
         {"output": {"ephemeral": False}}, {"output": {"ephemeral": True}}),
    Case("a path of a pod keeps nothing", "output.uri", "OutputNotKept", "A path is a folder inside the pods",
         {"output.uri": "/mnt/claims/models/out"}, {"output.uri": "pvc://models"}),
    Case("an output is kept or may be lost", "output.ephemeral", "Contradiction",
         "output.uri keeps the result, but output.ephemeral allows it to be lost.",
         {"output.ephemeral": True}, {"output.ephemeral": False}),
    Case("several nodes share their output", "output.ephemeral", "OutputNotShared",
         "All nodes of a job write to one output",
         {"output": {"ephemeral": True}, "compute.gpus_per_node": 4},
         {"output": {"ephemeral": True}, "compute.gpus_per_node": 8}),
    # Pods
    Case("a variable does not change what code runs", "pods.env", "ForbiddenVariable",
         "Variables that change what code runs",
         {"pods.env": [{"name": "A", "value": "1"}, {"name": "LD_PRELOAD", "value": "x.so"}]},
         {"pods.env": [{"name": "A", "value": "1"}, {"name": "MY_LD_PRELOAD", "value": "x.so"}]}),
    *(Case(f"{path} is more than nothing", path, "BadQuantity", "The quantity is zero",
           {path: wrong}, {path: near})
      for path, wrong, near in (("pods.cpu", "0", "8m"), ("pods.memory", "8m", "8M"),
                                ("pods.sharedMemory", "0.0Gi", "0.5Gi"))),
    Case("labels of controllers are not given", "pods.labels", "ReservedName", RESERVED,
         {"pods.labels": {"training.kubeflow.org/job-name": "x"}},
         {"pods.labels": {"notkubeflow.org/job-name": "x"}}),
    Case("annotations of controllers are not given", "pods.annotations", "ReservedName", RESERVED,
         {"pods.annotations": {"kubernetes.io/x": "y"}}, {"pods.annotations": {"example.org/kubernetes.io": "y"}}),
    Case("pods get nothing of the node by an annotation", "pods.annotations", "ReservedAnnotation",
         "Names of devices.gke.io",
         {"pods.annotations": {"devices.gke.io/container.pytorch": "x"}},
         {"pods.annotations": {"example.org/devices.gke.io": "x"}}),
    Case("a label has a legal key", "pods.labels", "BadLabelKey", BAD_KEY,
         {"pods.labels": {"a" * 64: "x"}}, {"pods.labels": {"a" * 63: "x"}}),
    Case("an annotation has a legal key", "pods.annotations", "BadLabelKey", BAD_KEY,
         {"pods.annotations": {"Example.org/x": "y"}}, {"pods.annotations": {"example.org/X": "y"}}),
    Case("a node is selected by a legal key", "pods.nodeSelector", "BadLabelKey", BAD_KEY,
         {"pods.nodeSelector": {"": "x"}}, {"pods.nodeSelector": {"kubernetes.io/arch": "amd64"}}),
    # Refused keys
    Case("GPUs that generate are refused", "compute.topology.gpus_for_vllm", "RefusedKey",
         f"This key is refused: {RL}", {"compute.topology.gpus_for_vllm": 0}, {"compute.topology.type": "single"}),
    Case("GPUs of a reference model are refused", "compute.topology.gpus_for_ref", "RefusedKey",
         f"This key is refused: {RL}", {"compute.topology.gpus_for_ref": 1}, {"compute.topology.gpus_for_ref": None}),
    Case("a place for a reference model is refused", "compute.topology.reference_placement", "RefusedKey",
         f"This key is refused: {RL}", {"compute.topology.reference_placement": "none"},
         {"compute.topology.gpus_for_training": 8}),
)  # fmt: skip
