"""The QLoRA examples that other systems have published: each validates, renders, and trains a model of its family.

`toml` has the files as they are, `translated` those of systems with other keys. `finetune validate` of the former is
in test_toml.py.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel

from cli.calls import finetune
from finetune_api.resource.names import RUN_CONFIG_ANNOTATION
from finetune_api.runtime.choices import Engine
from finetune_api.runtime.report import ProgressRecord
from finetune_api.runtime.run_config import RunConfig
from finetune_cli import job_file, planning
from finetune_cli.overrides import Overrides
from finetune_trainer import architecture
from finetune_trainer.errors import ModelRefused
from trainer import models, trainer_work
from trainer.ranks import run_ranks, values

HERE = Path(__file__).parent
STEPS = 3
ON_A_CLUSTER = ("--dataset", "pvc://rows/train.jsonl", "--output", "pvc://models/out")


def here(ranks: int) -> tuple[str, ...]:
    """Three steps by processes of this machine, however many rows a step takes."""
    return (
        "compute.gpu_type=CPU",
        f"compute.gpu_count={ranks}",
        "compute.nodes=1",
        f"compute.gpus_per_node={ranks}",
        "data.topology=null",
        f"hyperparameters.n_epochs={STEPS}",
        f"hyperparameters.total_steps={STEPS}",
    )


EVALUATED = ("data.validation_path=pvc://rows/eval.jsonl",)
EXPERTS = "training.use_qlora: qwen3_moe keeps matrices of a layer, as those of experts, in one parameter"
NOT_QUANTISED = ("training.mode=lora", "training.use_qlora=false")
"""The remedy for experts."""

_TEXT: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 8192, "bos_token_id": None,
    "eos_token_id": 257, "pad_token_id": 257,
}  # fmt: skip
_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3]}
_IMAGES = {"image_token_id": 300, "video_token_id": 301, "vision_start_token_id": 302, "vision_end_token_id": 303}
FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "Qwen2.5": ("qwen2", _TEXT),
    "Qwen3": ("qwen3", _TEXT),
    "Llama": ("llama", _TEXT),
    "Mistral": ("mistral", _TEXT),
    "Qwen3 MoE": ("qwen3_moe", {**_TEXT, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    "Qwen2-VL": ("qwen2_vl", {
        "text_config": {**_TEXT, "rope_parameters": _ROPE}, **_IMAGES,
        "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
    }),
    "Qwen3-VL": ("qwen3_vl", {
        "text_config": {**_TEXT, "rope_parameters": _ROPE}, **_IMAGES,
        "vision_config": {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
                          "out_hidden_size": 64, "deepstack_visual_indexes": [0, 1]},
    }),
}  # fmt: skip
"""Family -> its name in transformers, and the sizes of a random model."""


@dataclass(frozen=True)
class Example:
    file: str
    family: str
    targets: Sequence[str] = ("all-linear",)
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    double: bool = True
    remedy: tuple[str, ...] = ()
    """Assignments (--set) with which `finetune validate` accepts it."""
    ranks: int = 1
    """Two where the file asks for ZeRO, which one process does not need."""
    refused: str = ""
    """What the trainer says of the family's architecture before it reads weights."""

    def __str__(self) -> str:
        return self.file

    @property
    def path(self) -> Path:
        return HERE / ("toml" if self.file.endswith(".toml") else "translated") / self.file


EXAMPLES = (
    Example("multi_gpu_qlora_4xh100.toml", "Qwen3", ranks=2),
    Example("qlora_small.toml", "Qwen3", ranks=2),
    Example("qlora_minimal.toml", "Qwen3"),
    Example("crafter_lora_qwen0p6b.toml", "Qwen3"),
    Example("coder_lora_small.toml", "Qwen3", dropout=0.05),
    Example("coder_lora_4b.toml", "Qwen3", dropout=0.05),
    Example("coder_lora_30b.toml", "Qwen3 MoE", dropout=0.05, refused=EXPERTS),
    Example("crafter_sft_qwen30b_lora.toml", "Qwen3 MoE", dropout=0.05, ranks=2, refused=EXPERTS),
    Example("sft_vision_small.toml", "Qwen3-VL", ("q_proj", "v_proj"), rank=8, alpha=16),
    Example("crafter_vlm_sft_example.toml", "Qwen2-VL", dropout=0.05, ranks=2),
    Example("sft_sample.toml", "Llama", remedy=EVALUATED),
    Example("modelforge_low_end.yaml", "Qwen2.5", dropout=0.1, double=False),
    Example("modelforge_mid_range.yaml", "Llama", rank=64, alpha=128, dropout=0.1, double=False),
    Example("axolotl_llama3_qlora.yaml", "Llama", rank=32, alpha=16, dropout=0.05),
    Example("axolotl_mistral_qlora.yaml", "Mistral",
            ("gate_proj", "down_proj", "up_proj", "q_proj", "v_proj", "k_proj", "o_proj"),
            rank=32, alpha=16, dropout=0.05),
    Example("axolotl_qwen3_32b_qlora.yaml", "Qwen3",
            ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj", "up_proj")),
)  # fmt: skip
MISPLACED = "# Keys of training.validation, at the wrong place:"


def remedied(example: Example, folder: Path) -> Path:
    """The file, with keys of another section in their own, as the refusal says."""
    lines = example.path.read_text().replace(MISPLACED, "[training.validation]").splitlines()
    path = folder / example.file
    path.write_text("\n".join(line for line in lines if not line.startswith("load_best_model_at_end")))
    return path


def sets(assignments: Sequence[str]) -> list[str]:
    return [word for each in assignments for word in ("--set", each)]


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_a_published_example_renders_as_qlora_with_its_adapters(tmp_path: Path, example: Example) -> None:
    file = remedied(example, tmp_path)
    checked = finetune("validate", file, *ON_A_CLUSTER, *sets(example.remedy), "-o", "json")
    assert json.loads(checked.stdout)["errors"] == []
    rendered = finetune("render", file, *ON_A_CLUSTER, *sets(example.remedy))
    [job] = [each for each in yaml.safe_load_all(rendered.stdout) if each and each["kind"] == "PyTorchJob"]
    [replica] = job["spec"]["pytorchReplicaSpecs"].values()
    config = json.loads(replica["template"]["metadata"]["annotations"][RUN_CONFIG_ANNOTATION])
    assert (config["method"], config["quantisation"]) == ("qlora", {"format": "nf4", "double": example.double})
    adapters = {"rank": example.rank, "alpha": example.alpha, "dropout": example.dropout}
    assert config["lora"] == {**adapters, "target_modules": list(example.targets)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def of(family: str) -> Path:
        return models.save(small(family), tmp_path_factory.mktemp("base"))

    return of


def small(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    kind, sizes = FAMILIES[family]
    config = AutoConfig.for_model(kind, **sizes)
    found: PreTrainedModel = architecture.auto_class(config).from_config(config)
    return found


def run_config(example: Example, model: Path, folder: Path, *more: str) -> RunConfig:
    """What `finetune run` would give to its processes."""
    rows, held_out = models.dataset(folder / "rows.jsonl", 32), models.dataset(folder / "held-out.jsonl", 4, seed=50)
    file = job_file.read(str(remedied(example, folder)))
    evaluated = [f"data.validation_path={held_out}"] * ("validation_path" in file.resource["spec"].get("data", {}))
    given = Overrides(
        dataset=str(rows), model=str(model), output=str(folder / "output"),
        assignments=(*example.remedy, *here(example.ranks), *evaluated, *more),
    )  # fmt: skip
    return planning.accept(file, given, cluster=False).resolution.run_config


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_a_published_example_trains_a_small_model_of_its_family(tmp_path: Path, base: Any, example: Example) -> None:
    model = base(example.family)
    config = run_config(example, model, tmp_path)
    if example.refused:
        for ended in run_ranks(example.ranks, trainer_work.run_on_ranks, config):
            assert isinstance(ended.error, ModelRefused)
            assert str(ended.error).startswith(example.refused)
            assert "(training.mode: lora, use_qlora: false)" in str(ended.error)
        config = run_config(example, model, tmp_path, *NOT_QUANTISED)
    assert config.engine is (Engine.ZERO2 if example.ranks > 1 else Engine.SINGLE)
    report = values(run_ranks(example.ranks, trainer_work.run_on_ranks, config))[0]
    losses = [r.loss for r in trainer_work.records(tmp_path / "output") if isinstance(r, ProgressRecord)]
    assert report.step == len(losses) == STEPS
    assert all(loss is not None and math.isfinite(loss) for loss in losses)
    saved = json.loads((tmp_path / "output" / "result" / "adapter_config.json").read_bytes())
    assert (saved["r"], saved["lora_alpha"], saved["peft_type"]) == (example.rank, example.alpha, "LORA")
    weights = load_file(tmp_path / "output" / "result" / "adapter_model.safetensors")
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in weights} == ends(example)


def ends(example: Example) -> set[str]:
    """Last parts of the names of layers with adapters: all of these families name them alike."""
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    dense = {"gate_proj", "up_proj", "down_proj"} if example.family != "Qwen3 MoE" else set()
    return attention | dense if example.targets == ("all-linear",) else set(example.targets)


def test_zero_3_trains_a_published_toml_of_all_weights(tmp_path: Path, base: Any) -> None:
    example = Example("crafter_fft.toml", "Qwen3", ranks=2)
    config = run_config(example, base("Qwen3"), tmp_path)
    assert config.engine is Engine.ZERO3
    report = values(run_ranks(2, trainer_work.run_on_ranks, config))[0]
    assert report.step == STEPS
    before, after = (
        load_file(folder / "model.safetensors") for folder in (base("Qwen3"), tmp_path / "output/result")
    )
    assert before.keys() == after.keys()
    assert [name for name in before if torch.equal(before[name].float(), after[name].float())] == []


def test_finetune_run_takes_a_published_toml_as_it_is(tmp_path: Path, base: Any) -> None:
    example = next(each for each in EXAMPLES if each.file == "multi_gpu_qlora_4xh100.toml")
    rows = models.dataset(tmp_path / "rows.jsonl", 32)
    given = ("--dataset", rows, "--model", base(example.family), "--output", tmp_path / "output")
    done = subprocess.run(
        [sys.executable, "-m", "finetune_cli", "run", example.path, *given, *sets(here(example.ranks))],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "step 3/3  loss " in done.stderr
    assert (tmp_path / "output" / "result" / "adapter_model.safetensors").is_file()


def test_every_toml_with_qlora_is_an_example() -> None:
    files = {path.name: tomllib.loads(path.read_text()) for path in (HERE / "toml").glob("*.toml")}
    asking = {name for name, spec in files.items() if spec["training"].get("use_qlora")}
    translated = {path.name for path in (HERE / "translated").glob("*.yaml")}
    assert asking | translated == {example.file for example in EXAMPLES}
