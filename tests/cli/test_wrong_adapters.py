"""Wrong uses of adapters and QLoRA that need no model to be seen: the key, the reason, and a remedy that works."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.calls import finetune

P = "hyperparameters.parallelism"
FROM = "training.lora.from=pvc://adapters/one"
NF4 = "training.quantization.format=nf4"
ADAPTERS = "training.lora"
PARAMETERS = 'training.lora.target_parameters=["experts.down_proj"]'


@dataclass(frozen=True)
class Wrong:
    """`asked` and `mended` are assignments; `said` is of the message and `remedy` of the remedy."""

    asked: tuple[str, ...]
    path: str
    reason: str
    said: str
    remedy: str
    mended: tuple[str, ...]


WRONG = {
    "four bits with full finetuning": Wrong(
        ("training.mode=fft", "training.use_qlora=true"), "training.use_qlora", "MethodContradiction",
        "Given: training.use_qlora = True, training.mode = 'fft'.", "leave mode out", ("training.use_qlora=true",)),
    "four bits with weights that are all trained": Wrong(
        ("hyperparameters.train_kind=fft", "training.use_qlora=true"), "hyperparameters.train_kind",
        "MethodContradiction", "Given: hyperparameters.train_kind = 'fft', training.use_qlora = True.",
        "Set train_kind to peft", ("hyperparameters.train_kind=peft", "training.use_qlora=true")),
    "mode qlora without QLoRA": Wrong(
        ("training.mode=qlora", "training.use_qlora=false"), "training.use_qlora", "MethodContradiction",
        "Given: training.use_qlora = False, training.mode = 'qlora'.", "Remove use_qlora", ("training.mode=qlora",)),
    "a format of the base for LoRA": Wrong(
        ("training.mode=lora", NF4), "training.quantization.format", "MethodContradiction",
        "the method is lora. training.mode is lora.", "set training.use_qlora to true.",
        ("training.mode=lora", "training.use_qlora=true", NF4)),
    "a format of the base for full finetuning": Wrong(
        ("training.mode=full", NF4), "training.quantization.format", "MethodContradiction",
        "the method is fft. training.mode is full.", "set training.use_qlora to true and remove training.mode.",
        ("training.use_qlora=true", NF4)),
    "a format of the base beside two keys for full finetuning": Wrong(
        ("training.mode=full", "hyperparameters.train_kind=fft", NF4), "training.quantization.format",
        "MethodContradiction", "the method is fft.", "remove training.mode and hyperparameters.train_kind.",
        ("training.use_qlora=true", NF4)),
    "integers of four bits": Wrong(
        ("training.use_qlora=true", "training.quantization.format=int4"), "training.quantization.format",
        "UnknownValue", "'int4' is not one of 'nf4', 'fp4' or 'int8'.", "Set nf4, fp4 or int8, or leave it out.",
        ("training.use_qlora=true", "training.quantization.format=fp4")),
    "scales of eight bits for integers of eight": Wrong(
        ("training.use_qlora=true", "training.quantization.format=int8", "training.quantization.double_quant=true"),
        "training.quantization.double_quant", "Contradiction", "int8 has one scale for each row",
        "Remove double_quant, or set format to nf4.",
        ("training.use_qlora=true", "training.quantization.format=int8")),
    "the storage of the codes": Wrong(
        ("training.use_qlora=true", "training.quantization.bnb_4bit_quant_storage=bfloat16"),
        "training.quantization.bnb_4bit_quant_storage", "UnknownKey", "is not a key of spec.training.quantization.",
        "Remove it: codes are stored as bytes", ("training.use_qlora=true",)),
    "a format of its own to compute with": Wrong(
        ("training.use_qlora=true", "training.quantization.bnb_4bit_compute_dtype=bfloat16"),
        "training.quantization.bnb_4bit_compute_dtype", "UnknownKey", "is not a key of spec.training.quantization.",
        f"the format of the job, which {P}.bf16 or fp16 sets.", ("training.use_qlora=true", f"{P}.bf16=true")),
    "the name of another system for QLoRA": Wrong(
        ("training.load_in_4bit=true",), "training.load_in_4bit", "UnknownKey", "is not a key of spec.training.",
        "Did you mean spec.training.use_qlora?", ("training.use_qlora=true",)),
    "a rank of zero": Wrong(
        ("training.mode=lora", f"{ADAPTERS}.r=0"), f"{ADAPTERS}.r", "BadValue",
        "0 is not valid: it must be at least 1.", f"`finetune explain {ADAPTERS}.r` describes the key.",
        ("training.mode=lora", f"{ADAPTERS}.r=1")),
    "two ranks": Wrong(
        ("training.mode=lora", f"{ADAPTERS}.r=8", "lora.r=16"), "hyperparameters.lora.r", "Contradiction",
        "Given: training.lora.r = 8, lora.r = 16.", "or give them the same value.",
        ("training.mode=lora", f"{ADAPTERS}.r=8", "lora.r=8")),
    "a rank beside an adapter to continue from": Wrong(
        (FROM, f"{ADAPTERS}.r=8"), f"{ADAPTERS}.from", "AdapterContradiction", "training.lora.r = 8.",
        "Leave all keys of adapters but from and dropout out", (FROM, f"{ADAPTERS}.dropout=0.1")),
    "DoRA beside an adapter to continue from": Wrong(
        (FROM, f"{ADAPTERS}.use_dora=true"), f"{ADAPTERS}.from", "AdapterContradiction",
        "training.lora.use_dora = True.", "or leave from out to begin a new adapter.",
        (f"{ADAPTERS}.use_dora=true",)),
    "layers by a pattern that is none": Wrong(
        (f'{ADAPTERS}.target_modules=["(q_proj"]',), f"{ADAPTERS}.target_modules", "BadExpression",
        "'(q_proj' is not a regular expression: missing )", r"such as .*layers\.[0-7]\..*_proj",
        (rf'{ADAPTERS}.target_modules=[".*layers\\.[0-7]\\..*_proj"]',)),
    "ranks by a pattern that is none": Wrong(
        (f'{ADAPTERS}.rank_pattern={{"(q": 8}}',), f"{ADAPTERS}.rank_pattern", "BadExpression",
        "'(q' is not a regular expression: missing )", "or the end of a layer's name.",
        (f'{ADAPTERS}.rank_pattern={{"q_proj": 8}}',)),
    "a start that needs rows": Wrong(
        (f"{ADAPTERS}.init_lora_weights=eva",), f"{ADAPTERS}.init_lora_weights", "UnknownValue",
        "'eva' is not one of 'default', 'gaussian', 'olora', 'pissa',", "Set default, gaussian, olora, pissa or",
        (f"{ADAPTERS}.init_lora_weights=pissa",)),
    "DoRA of a base without a part": Wrong(
        (f"{ADAPTERS}.init_lora_weights=olora", f"{ADAPTERS}.use_dora=true"), f"{ADAPTERS}.init_lora_weights",
        "AdapterContradiction", "takes a part of each row out of the base", "Set use_dora to false, or",
        (f"{ADAPTERS}.init_lora_weights=olora", f"{ADAPTERS}.use_dora=false")),
    "dropout of a part of the base": Wrong(
        (f"{ADAPTERS}.init_lora_weights=pissa", f"{ADAPTERS}.dropout=0.1"), f"{ADAPTERS}.dropout", "Contradiction",
        "pissa moves the largest part of each weight into its adapter", "Set it to 0, or init_lora_weights to",
        (f"{ADAPTERS}.init_lora_weights=pissa", f"{ADAPTERS}.dropout=0")),
    "dropout beside parameters": Wrong(
        (PARAMETERS, f"{ADAPTERS}.dropout=0.1"), f"{ADAPTERS}.dropout", "Contradiction",
        "dropout is 0.1, which PEFT has for adapters on layers only", "Set it to 0, or leave target_parameters out.",
        (PARAMETERS, f"{ADAPTERS}.dropout=0")),
    "DoRA beside parameters": Wrong(
        (PARAMETERS, f"{ADAPTERS}.use_dora=true"), f"{ADAPTERS}.use_dora", "Contradiction",
        "use_dora is true, which PEFT has for adapters on layers only",
        "Set it to false, or leave target_parameters out.", (PARAMETERS, f"{ADAPTERS}.use_dora=false")),
    "a part of the base beside parameters": Wrong(
        (PARAMETERS, f"{ADAPTERS}.init_lora_weights=pissa"), f"{ADAPTERS}.init_lora_weights", "Contradiction",
        "init_lora_weights is pissa, which PEFT has for adapters on layers only",
        "Set it to default, or leave target_parameters out.", (PARAMETERS, f"{ADAPTERS}.init_lora_weights=default")),
    "parameters by a pattern": Wrong(
        (rf'{ADAPTERS}.target_parameters=[".*down_proj"]',), f"{ADAPTERS}.target_parameters", "BadExpression",
        "'.*down_proj' is no end of a name, and PEFT reads no expressions here.",
        "Write names such as mlp.experts.down_proj.", (PARAMETERS,)),
    "modules in full by a pattern": Wrong(
        (rf'{ADAPTERS}.modules_to_save=[".*head"]',), f"{ADAPTERS}.modules_to_save", "BadExpression",
        "'.*head' is no end of a name, and PEFT reads no expressions here.",
        "Write names such as lm_head or embed_tokens.", (f'{ADAPTERS}.modules_to_save=["lm_head"]',)),
    "a token of white space": Wrong(
        ('data.added_tokens=["<a>", " "]',), "data.added_tokens", "BadValue",
        "A token of white space only would be in every template and row.", "Choose another text.",
        ('data.added_tokens=["<a>"]',)),
    "nothing to adapt": Wrong(
        (f"{ADAPTERS}.target_modules=[]",), f"{ADAPTERS}.target_modules", "Contradiction",
        "target_modules names no layer, and no parameters are named", "or name parameters of experts in training",
        (f"{ADAPTERS}.target_modules=[]", PARAMETERS)),
    "a merged model of full finetuning": Wrong(
        ("training.mode=fft", "output.merge=true"), "output.merge", "MethodContradiction", "training.mode = 'fft'.",
        "select adapters (training.mode: lora).", ("training.mode=lora", "output.merge=true")),
    "tensor parallelism on a base of four bits": Wrong(
        ("training.use_qlora=true", f"{P}.tensor_parallel_size=2", "compute.gpu_count=4"),
        f"{P}.tensor_parallel_size", "Unsupported", "does not have tensor_parallel 2", "Set it to 1;",
        ("training.use_qlora=true", f"{P}.tensor_parallel_size=1", f"{P}.fsdp=true", "compute.gpu_count=4")),
}  # fmt: skip
JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FinetuneJob
metadata: {name: wrong}
spec:
  job: {model: org/name, data: pvc://rows/train.jsonl}
  compute: {gpu_type: H100}
  output: {uri: pvc://models/out}
"""


def errors(folder: Path, assignments: tuple[str, ...]) -> Any:
    file = folder / "job.yaml"
    file.write_text(JOB)
    sets = [word for each in assignments for word in ("--set", each)]
    return json.loads(finetune("validate", file, *sets, "-o", "json").stdout)["errors"]


def require_refused_with_a_remedy_that_works(folder: Path, wrong: Wrong) -> None:
    [error] = errors(folder, wrong.asked)
    assert (error["path"], error["reason"]) == (f"spec.{wrong.path}", wrong.reason)
    assert wrong.said in error["message"]
    assert wrong.remedy in error["remedy"]
    assert errors(folder, wrong.mended) == []


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_use_of_adapters_is_refused_with_a_remedy_that_works(tmp_path: Path, case: str) -> None:
    require_refused_with_a_remedy_that_works(tmp_path, WRONG[case])
