"""Training continues from an earlier adapter: with its values and sizes, or it is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from finetune_api.runtime.protocol import MARKER
from finetune_api.runtime.report import FinalReport
from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import adapter_folder, adapters, preparation
from finetune_trainer.errors import ConfigRefused, ModelRefused, OutputRefused
from finetune_trainer.handoff import VALIDATION
from finetune_trainer.rows import Rows
from trainer import models, result_work
from trainer import trainer_work as work
from trainer.qlora_work import ADAPTERS
from trainer.ranks import run_ranks, values

VALIDATED = {"every_steps": 0, "keep_best": False, "metric": "val.loss", "greater_is_better": False}
QUANTISED = {"method": "qlora", "quantisation": {"format": "nf4", "double": True}}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({}, {}),
    "dora": (ADAPTERS["dora"][0], {}),
    "rslora": (ADAPTERS["rslora"][0], {}),
    "patterns": (ADAPTERS["patterns"][0], {}),
    "layers": (ADAPTERS["layers"][0], {}),
    "qlora": ({}, QUANTISED),
    "qlora with dora": (ADAPTERS["dora"][0], QUANTISED),
    "bf16": ({}, {"precision": "bf16"}),
    "modules to save": (ADAPTERS["ends"][0], {}),
    "qlora with modules to save": (ADAPTERS["norms and a layer"][0], QUANTISED),
    "rows of tokens": ({"trainable_tokens": ("<|im_start|>", "<|im_end|>")}, {}),
}
"""Settings of adapters, and of runs."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    models.model_folder(folder / "model")
    models.dataset(folder / "rows.jsonl")
    models.dataset(folder / "held-out.jsonl", 7, seed=500)
    return folder


def config(inputs: Path, output: Path, *, lora: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    return models.run_config(
        inputs / "model", inputs / "rows.jsonl", output, data__validation=str(inputs / "held-out.jsonl"),
        **{"validation": VALIDATED, "method": "lora", "lora": models.lora(**(lora or {})), **changes},
    )  # fmt: skip


def continuing(inputs: Path, output: Path, source: Path | str, **changes: Any) -> RunConfig:
    """As the plan writes it: what the adapter decides has the values of a job that says nothing."""
    return config(inputs, output, lora={"rank": 16, "alpha": 32.0, "source": str(source)}, **changes)


def run(settings: RunConfig) -> FinalReport:
    output = Path(settings.output)
    report: FinalReport = values(run_ranks(1, work.run, settings, output.with_name(f"handoff of {output.name}")))[0]
    return report


def refusal(settings: RunConfig, program: Any = work.run, *more: Any) -> Exception:
    """What a run raises."""
    [ended] = run_ranks(1, program, settings, Path(settings.output).with_name("refused"), *more)
    assert ended.error is not None
    return ended.error


def sizes(output: Path) -> dict[str, Any]:
    """Of the adapter that is the result: shapes, and what scales them."""
    found = json.loads((output / "result" / "adapter_config.json").read_bytes())
    tensors = safetensors.torch.load_file(output / "result" / "adapter_model.safetensors")
    keys = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save",
            "trainable_token_indices")  # fmt: skip
    return {name: tensor.shape for name, tensor in tensors.items()} | {key: found[key] for key in keys}


@pytest.mark.parametrize("kind", KINDS)
def test_training_continues_where_the_adapter_is(tmp_path: Path, inputs: Path, kind: str) -> None:
    lora, changes = KINDS[kind]
    first = run(config(inputs, tmp_path / "first", lora=lora, **changes))
    second = run(continuing(inputs, tmp_path / "second", tmp_path / "first", **changes))
    roundings = 1e-3 if "precision" in changes else 1e-6  # of stochastic casts, another for each step
    assert second.metrics["val.loss.initial"] == pytest.approx(first.metrics["val.loss"], rel=roundings)
    before, between, after = first.metrics["val.loss.initial"], first.metrics["val.loss"], second.metrics["val.loss"]
    assert (after or 9) < (between or 0) < (before or 0)
    assert sizes(tmp_path / "second") == sizes(tmp_path / "first")


@pytest.fixture(scope="module")
def first(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run."""
    output = tmp_path_factory.mktemp("first") / "output"
    run(config(inputs, output))
    return output


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_on_two_ranks_it_continues_as_on_one(tmp_path: Path, inputs: Path, first: Path, engine: str) -> None:
    alone = continuing(inputs, tmp_path / "alone", first)
    both = continuing(
        inputs, tmp_path / "both", first, engine=engine, mesh__processes_per_node=2, mesh__data_parallel=2,
        batch={"per_device": 1, "accumulation": 2},
    )  # fmt: skip
    expected = run(alone)
    found, other = values(run_ranks(2, work.run_on_ranks, both))
    assert found.metrics == other.metrics
    for name, value in expected.metrics.items():
        assert found.metrics[name] == pytest.approx(value, rel=1e-5), name


def test_an_adapter_that_peft_has_written_is_continued(tmp_path: Path, inputs: Path) -> None:
    """With a pattern of PEFT's own kind, and in bf16."""
    base = LlamaForCausalLM.from_pretrained(inputs / "model")
    targets = r".*\.[02]\..*(q|v)_proj"
    made = LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False, alpha_pattern={"q_proj": 7})
    get_peft_model(base, made).save_pretrained(str(tmp_path / "theirs"))
    change_weights(tmp_path / "theirs", lambda name, t: t.to(torch.bfloat16))
    report = run(continuing(inputs, tmp_path / "output", tmp_path / "theirs"))
    again = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(inputs / "model"), str(tmp_path / "theirs"))
    expected = work.mean_loss(again, Rows.load(tmp_path / "handoff of output" / VALIDATION))
    assert report.metrics["val.loss.initial"] == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def tied(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs with a model whose output head is its embedding."""
    folder = tmp_path_factory.mktemp("tied")
    shutil.copytree(inputs, folder, dirs_exist_ok=True)
    models.model_folder(folder / "model", tied=True)
    return folder


def saved_by_peft(inputs: Path, folder: Path, *, together: bool) -> PeftModel:
    """An adapter with the embedding in full, whose head is its copy, or has kept its weight."""
    base = LlamaForCausalLM.from_pretrained(inputs / "model")
    made = get_peft_model(
        base,
        LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=together),
    )
    result_work.disturb(made)
    made.save_pretrained(str(folder), save_embedding_layers=False)
    return made


def test_a_tied_weight_that_peft_has_trained_is_continued(tmp_path: Path, tied: Path) -> None:
    theirs = saved_by_peft(tied, tmp_path / "theirs", together=True)
    report = run(continuing(tied, tmp_path / "output", tmp_path / "theirs"))
    expected = work.mean_loss(theirs, Rows.load(tmp_path / "handoff of output" / VALIDATION))
    assert report.metrics["val.loss.initial"] == pytest.approx(expected, rel=1e-5)
    assert (report.metrics["val.loss"] or 9) < expected
    stored = safetensors.torch.load_file(tmp_path / "output" / "result" / "adapter_model.safetensors")
    head, embedding = (stored[f"base_model.model.{name}.weight"] for name in ("lm_head", "model.embed_tokens"))
    assert torch.equal(head, embedding)
    before = safetensors.torch.load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert not torch.equal(head, before["base_model.model.lm_head.weight"])


def test_rows_of_the_embedding_alone_are_refused_where_the_head_has_its_own(
    tmp_path: Path, inputs: Path, tied: Path
) -> None:
    for base, name in ((inputs, "two"), (tied, "one")):
        made: Any = get_peft_model(
            LlamaForCausalLM.from_pretrained(base / "model"),
            LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 257]),
        )
        result_work.disturb(made)
        made.save_pretrained(str(tmp_path / name), save_embedding_layers=False)
    message = "has rows of model.embed_tokens, and here those of lm_head, model.embed_tokens are trained; train it"
    assert message in str(refusal(continuing(inputs, tmp_path / "refused", tmp_path / "two")))
    report = run(continuing(tied, tmp_path / "output", tmp_path / "one"))
    expected = work.mean_loss(made, Rows.load(tmp_path / "handoff of output" / VALIDATION))
    assert report.metrics["val.loss.initial"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
def test_an_embedding_that_peft_has_trained_apart_from_its_head_is_refused(tmp_path: Path, tied: Path) -> None:
    saved_by_peft(tied, tmp_path / "theirs", together=False)
    refused = refusal(continuing(tied, tmp_path / "output", tmp_path / "theirs"))
    assert isinstance(refused, ModelRefused)
    assert "does not have lm_head.weight, which belongs to its modules_to_save or bias, or shares a" in str(refused)


def test_values_of_one_weight_that_differ_are_refused(tmp_path: Path, tied: Path) -> None:
    saved_by_peft(tied, tmp_path / "theirs", together=True)
    change_weights(tmp_path / "theirs", lambda name, t: t * 2 if "lm_head" in name else t)
    refused = refusal(continuing(tied, tmp_path / "output", tmp_path / "theirs"))
    assert "share a weight in job.model, and were trained apart; train the adapter further" in str(refused)


def test_dropout_is_the_jobs_own_and_all_else_the_adapters(tmp_path: Path, inputs: Path, first: Path) -> None:
    settings = config(inputs, tmp_path / "output", lora={"source": str(first), "dropout": 0.25, "rank": 64})
    assert settings.lora is not None
    found = adapter_folder.continued(settings.lora, first / "result")
    assert (found.dropout, found.rank, found.alpha) == (0.25, 4, 8.0)
    assert (found.source, found.folder) == (str(first), str(first / "result"))


def test_another_adapter_in_its_place_is_another_run(tmp_path: Path, inputs: Path, first: Path) -> None:
    shutil.copytree(first / "result", tmp_path / "adapter")
    (tmp_path / "adapter" / MARKER).unlink()
    settings = continuing(inputs, tmp_path / "output", tmp_path / "adapter", schedule__max_steps=1)
    run(settings)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    safetensors.torch.save_file({n: t * 2 for n, t in safetensors.torch.load_file(weights).items()}, weights)
    refused = refusal(settings)
    assert isinstance(refused, OutputRefused)
    assert "the content of training.lora.from was" in str(refused)


def test_its_output_is_no_output_of_the_next_run(tmp_path: Path, inputs: Path, first: Path) -> None:
    output = shutil.copytree(first, tmp_path / "first")
    refused = refusal(continuing(inputs, output, output))
    assert isinstance(refused, OutputRefused)
    assert "belongs to another job" in str(refused)
    inside = refusal(continuing(inputs, output / "result", output / "result"))
    assert isinstance(inside, ConfigRefused)
    assert "is the folder of training.lora.from" in str(inside)


def test_another_base_of_the_same_shapes_is_refused(tmp_path: Path, inputs: Path, first: Path) -> None:
    other = models.model_folder(tmp_path / "other", seed=5)
    refused = refusal(continuing(inputs, tmp_path / "output", first).model_copy(update={"model": str(other)}))
    assert isinstance(refused, ModelRefused)
    assert f"job.model is not, file by file, the base that {first / 'result'} was trained on" in str(refused)


def test_of_a_copy_the_log_says_that_its_base_has_another_name(tmp_path: Path, inputs: Path, first: Path) -> None:
    copied, said = shutil.copytree(first / "result", tmp_path / "copied"), list[str]()
    lora = continuing(inputs, tmp_path / "output", copied).lora
    assert lora is not None
    preparation.continued(lora, str(inputs / "model"), inputs / "model", said.append)
    assert said == []
    preparation.continued(lora, "org/other", inputs / "model", said.append)
    [note] = said
    assert f"names {inputs / 'model'} as its base, and job.model is org/other" in note


def test_a_resume_with_another_adapter_says_only_what_helps(tmp_path: Path, inputs: Path, first: Path) -> None:
    run(config(inputs, tmp_path / "output", schedule__max_steps=1))
    refused = str(refusal(continuing(inputs, tmp_path / "output", first, schedule__max_steps=1)))
    assert "training.lora.from was absent" in refused
    assert "remove training.lora.from" in refused
    assert "restore" not in refused


def test_a_path_that_nothing_can_have_is_refused(tmp_path: Path, inputs: Path) -> None:
    refused = refusal(continuing(inputs, tmp_path / "output", tmp_path / ("a" * 300)))
    assert isinstance(refused, ModelRefused)
    assert "File name too long; correct the path" in str(refused)


def test_a_marker_that_is_none_refuses_the_adapter(tmp_path: Path, inputs: Path, first: Path) -> None:
    """A failure of storage would be tried again and again."""
    folder = shutil.copytree(first / "result", tmp_path / "copied")
    (folder / MARKER).unlink()
    os.mkfifo(folder / MARKER)
    refused = refusal(continuing(inputs, tmp_path / "output", folder))
    assert isinstance(refused, ModelRefused)
    assert "Is not a regular file" in str(refused)


def of_other_shapes(folder: Path) -> None:
    change_config(folder, r=2)


def of_a_smaller_base(folder: Path) -> None:
    change_weights(folder, lambda name, t: t[:, :64].contiguous() if "lora_A" in name else t)


def of_other_layers(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    renamed = {name.replace("layers.3.", "layers.7."): tensor for name, tensor in weights.items()}
    safetensors.torch.save_file(renamed, folder / "adapter_model.safetensors")


def of_another_part(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    renamed = {name.replace("layers.3.mlp.down_proj.", "layers.3."): tensor for name, tensor in weights.items()}
    safetensors.torch.save_file(renamed, folder / "adapter_model.safetensors")
    change_config(
        folder, target_modules=[*json.loads((folder / "adapter_config.json").read_bytes())["target_modules"], "3"]
    )


def of_a_layer_that_its_settings_leave_out(folder: Path) -> None:
    change_config(folder, target_modules=["q_proj"])


def of_no_numbers(folder: Path) -> None:
    change_weights(folder, lambda name, t: t * float("nan") if "layers.2.mlp.up_proj.lora_B" in name else t)


def of_another_method(folder: Path) -> None:
    change_config(folder, peft_type="IA3")


def of_another_start(folder: Path) -> None:
    change_config(folder, init_lora_weights="pissa")


def with_other_biases(folder: Path) -> None:
    change_config(folder, bias="boft_only")


def with_an_endless_alpha(folder: Path) -> None:
    change_config(folder, lora_alpha=float("inf"))


def with_an_alpha_beyond_fp32(folder: Path) -> None:
    change_config(folder, alpha_pattern={"q_proj": 1e300})


def with_values_beyond_fp32(folder: Path) -> None:
    change_weights(folder, lambda name, t: t.double() * 1e300 + 1e300 if "lora_A" in name else t)


def with_half_a_character(folder: Path) -> None:
    change_config(folder, target_modules="a\ud800")


def with_a_long_key(folder: Path) -> None:
    change_config(folder, **{f"own_{i}" + "x" * 3000: "y\n" * 1000 for i in range(20)})


def with_a_large_config(folder: Path) -> None:
    with (folder / "adapter_config.json").open("r+b") as stream:
        stream.truncate(1 << 33)


def with_a_rank_that_is_none(folder: Path) -> None:
    change_config(folder, r="eight")


def without_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def without_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def change_weights(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    safetensors.torch.save_file({n: change(n, t) for n, t in safetensors.torch.load_file(path).items()}, path)


def with_modules(folder: Path, names: list[str], **tensors: torch.Tensor) -> None:
    change_config(folder, modules_to_save=names)
    path = folder / "adapter_model.safetensors"
    more = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(safetensors.torch.load_file(path) | more, path)


def with_a_head_of_another_size(folder: Path) -> None:
    with_modules(folder, ["lm_head"], **{"lm_head.weight": torch.zeros(7, 128)})


def with_half_of_a_module(folder: Path) -> None:
    with_modules(folder, ["lm_head", "norm"], **{"lm_head.weight": torch.zeros(1024, 128)})


def with_a_module_that_is_none(folder: Path) -> None:
    with_modules(folder, ["score"], **{"score.weight": torch.zeros(7, 128)})


def with_a_tensor_that_is_none(folder: Path) -> None:
    head = {"lm_head.weight": torch.zeros(1024, 128), "lm_head.bias": torch.zeros(1024)}
    with_modules(folder, ["lm_head"], **head)


def with_numbers_that_are_none(folder: Path) -> None:
    with_modules(folder, ["model.norm"], **{"model.norm.weight": torch.full((128,), torch.nan)})


REFUSED: dict[Any, str] = {
    with_a_head_of_another_size: "has lm_head.weight with 7 x 128 numbers, and job.model with 1024 x 128",
    with_half_of_a_module: "does not have model.layers.0.input_layernorm.weight, which belongs to",
    with_a_module_that_is_none: "has score.weight in full, which is nothing of the language model of job.model",
    with_a_tensor_that_is_none: "has lm_head.bias in full, which is nothing of the language model of job.model",
    with_numbers_that_are_none: "model.norm.weight is not finite",
    of_other_shapes: "has the rank 2 in adapter_config.json, but factors",
    of_a_smaller_base: "has 256 inputs and 128 outputs in job.model, and 64 inputs and 128 outputs there",
    of_other_layers: "model.layers.7.mlp.down_proj is no layer of job.model, and it has an adapter there",
    of_another_part: "model.layers.3 is no linear layer of the language model, which alone gets adapters here",
    of_a_layer_that_its_settings_leave_out: "which target_modules, exclude_modules or layers_to_transform of adapt",
    of_no_numbers: "model.layers.2.mlp.up_proj has numbers in lora_B that are not finite",
    of_another_method: "has peft_type 'IA3', and only LoRA and DoRA are read",
    of_another_start: "has init_lora_weights 'pissa', and only LoRA and DoRA are read",
    with_other_biases: "has bias 'boft_only', and only LoRA and DoRA are read",
    with_an_endless_alpha: "cannot be read: lora_alpha is inf",
    with_an_alpha_beyond_fp32: "scales model.layers.0.self_attn.q_proj by",
    with_values_beyond_fp32: "has numbers in lora_A that are not finite",
    with_half_a_character: "cannot be read: 'utf-8' codec can't encode",
    with_a_long_key: "and more, and only LoRA and DoRA are read",
    with_a_large_config: "cannot be read: it has 8,589,934,592 bytes",
    with_a_rank_that_is_none: "r, lora_alpha, target_modules or trainable_token_indices of adapter_config.json",
    without_weights: "adapter_model.safetensors is missing",
    without_config: "is no adapter: adapter_config.json is missing",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda each: each.__name__)
def test_what_cannot_be_continued_is_refused(tmp_path: Path, inputs: Path, first: Path, spoil: Any) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(first / "result" / name, folder)
    spoil(folder)
    refused = refusal(continuing(inputs, tmp_path / "output", folder))
    assert isinstance(refused, ModelRefused)
    assert REFUSED[spoil] in str(refused)
    assert str(folder) in str(refused)
    assert len(str(refused)) < 2000
    assert not (tmp_path / "output" / "result").exists()


def test_a_result_that_was_edited_is_refused(tmp_path: Path, inputs: Path, first: Path) -> None:
    shutil.copytree(first, tmp_path / "first")
    change_config(tmp_path / "first" / "result", lora_alpha=99)
    refused = refusal(continuing(inputs, tmp_path / "output", tmp_path / "first"))
    assert "adapter_config.json has" in str(refused)
    assert "is not complete as it was published" in str(refused)


def test_an_adapter_that_changes_before_it_is_read_is_refused(tmp_path: Path, inputs: Path, first: Path) -> None:
    shutil.copytree(first, tmp_path / "first")
    settings = continuing(inputs, tmp_path / "output", tmp_path / "first")
    refused = refusal(settings, work.run_after_a_change, tmp_path / "first" / "result")
    assert "its files changed while it was read" in str(refused)


def test_nodes_that_see_other_adapters_are_refused(tmp_path: Path, inputs: Path, first: Path) -> None:
    shutil.copytree(first / "result", tmp_path / "other")
    (tmp_path / "other" / MARKER).unlink()
    change_weights(tmp_path / "other", lambda name, t: t * 2)
    mesh = {
        "engine": "ddp",
        "mesh__nodes": 2,
        "mesh__data_parallel": 2,
        "batch": {"per_device": 1, "accumulation": 2},
    }
    nodes = [continuing(inputs, tmp_path / "output", each, **mesh) for each in (first, tmp_path / "other")]
    for ended in run_ranks(2, work.run_as_node, nodes, tmp_path):
        assert isinstance(ended.error, ModelRefused)
        assert "the content of training.lora.from is not the same on node 1 as on node 0" in str(ended.error)


def test_a_whole_model_is_no_adapter(tmp_path: Path, inputs: Path) -> None:
    refused = refusal(continuing(inputs, tmp_path / "output", inputs / "model"))
    assert "is no adapter: adapter_config.json is missing" in str(refused)


def test_an_adapter_is_no_whole_model(tmp_path: Path, inputs: Path, first: Path) -> None:
    settings = config(inputs, tmp_path / "output").model_copy(update={"model": str(first / "result")})
    assert "set job.model to its base and training.lora.from to the adapter" in str(refusal(settings))


def test_no_values_are_read_for_an_outline(inputs: Path, first: Path) -> None:
    """Attaching is asked of models without memory, several times before weights are loaded."""
    settings = continuing(inputs, inputs / "output", first)
    assert settings.lora is not None
    lora = adapter_folder.continued(settings.lora, first / "result")
    with torch.device("meta"):
        outline = LlamaForCausalLM(models.llama().config)
    adapted = adapters.attach(outline, lora)
    assert all(parameter.is_meta for parameter in adapted.parameters())
