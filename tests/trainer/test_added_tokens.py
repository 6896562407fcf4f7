"""Tokens that a job adds: with rows as transformers would resize, in every method and every kind of result."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_api.runtime.protocol import MARKER
from finetune_api.runtime.report import FinalReport, ProgressRecord
from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import merging, preparation, sources, vocabulary
from finetune_trainer.errors import ConfigRefused, ModelRefused
from finetune_trainer.handoff import VALIDATION
from finetune_trainer.rows import Rows
from trainer import architectures, models, result_work
from trainer import trainer_work as work
from trainer.ranks import run_ranks, values

ADDED = ("<sum>", "</sum>")
VOCABULARY = 258
"""Of the tokenizer: a model with as many rows has none for new tokens."""
VALIDATED = {"every_steps": 0, "keep_best": False, "metric": "val.loss", "greater_is_better": False}
LORA = {"method": "lora", "lora": models.lora()}


@pytest.fixture(scope="module", params=[False, True], ids=["two weights", "one weight"])
def inputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    models.model_folder(folder / "model", vocabulary=VOCABULARY, tied=request.param)
    for name in ("rows.jsonl", "held-out.jsonl"):
        models.dataset(folder / name, 12)
        text = (folder / name).read_text().replace('"content": "=', '"content": "<sum></sum>=')
        (folder / name).write_text(text)
    return folder


def config(inputs: Path, output: Path, **changes: Any) -> RunConfig:
    settings = {"added_tokens": ADDED, "validation": VALIDATED, "schedule__max_steps": 4, **changes}
    return models.run_config(
        inputs / "model", inputs / "rows.jsonl", output, data__validation=str(inputs / "held-out.jsonl"), **settings
    )


def run(settings: RunConfig) -> FinalReport:
    output = Path(settings.output)
    report: FinalReport = values(run_ranks(1, work.run, settings, output.with_name(f"handoff of {output.name}")))[0]
    return report


def losses(output: Path) -> list[float | None]:
    return [record.loss for record in work.records(output) if isinstance(record, ProgressRecord)]


def resized(base: Path) -> Any:
    """As transformers and PEFT users do it, with the mean of all rows for new ones."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(VOCABULARY + len(ADDED), mean_resizing=False)
    with torch.no_grad():
        for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
            module.weight[VOCABULARY:] = module.weight[:VOCABULARY].mean(0)
    return model


def loss_of(model: Any, output: Path) -> float:
    return work.mean_loss(model, Rows.load(output.with_name(f"handoff of {output.name}") / VALIDATION))


def pieces(folder: Path) -> list[int]:
    numbers: list[int] = AutoTokenizer.from_pretrained(folder)("<sum></sum>", add_special_tokens=False)["input_ids"]
    return numbers


def test_adapters_train_as_on_a_base_that_transformers_has_resized(tmp_path: Path, inputs: Path) -> None:
    report = run(config(inputs, tmp_path / "output", **LORA))
    assert report.metrics["val.loss.initial"] == pytest.approx(
        loss_of(resized(inputs / "model"), tmp_path / "output"), rel=1e-5
    )
    (tmp_path / "resized").mkdir()
    resized(inputs / "model").save_pretrained(tmp_path / "resized" / "model")
    for path in ("rows.jsonl", "held-out.jsonl"):
        (tmp_path / "resized" / path).write_text((inputs / path).read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "output" / "result")
    tokenizer.save_pretrained(tmp_path / "resized" / "model")
    lora = models.lora(trainable_tokens=ADDED)
    again = run(config(tmp_path / "resized", tmp_path / "again", added_tokens=(), method="lora", lora=lora))
    assert losses(tmp_path / "again") == losses(tmp_path / "output")
    assert again.metrics == report.metrics


@pytest.mark.parametrize("rest", [{}, {"modules_to_save": ("embed_tokens", "lm_head")}], ids=["rows", "in full"])
def test_plain_peft_and_a_merged_model_have_what_was_trained(tmp_path: Path, inputs: Path, rest: Any) -> None:
    output = tmp_path / "output"
    report = run(config(inputs, output, method="lora", lora=models.lora(**rest), merge=True))
    assert report.metrics["val.loss"] < report.metrics["val.loss.initial"]  # type: ignore[operator]
    theirs = PeftModel.from_pretrained(resized(inputs / "model"), str(output / "result"))
    assert loss_of(theirs, output) == pytest.approx(report.metrics["val.loss"], rel=1e-5)
    merging.run(output / "result", tmp_path / "merged")
    for folder in (tmp_path / "merged", output / "result" / "merged"):
        merged = AutoModelForCausalLM.from_pretrained(folder)
        assert merged.config.vocab_size == VOCABULARY + len(ADDED)
        assert loss_of(merged, output) == pytest.approx(report.metrics["val.loss"], rel=1e-5)
        assert pieces(folder) == [VOCABULARY, VOCABULARY + 1]
    assert pieces(output / "result") == [VOCABULARY, VOCABULARY + 1]
    readme = (output / "result" / "README.md").read_text()
    assert f"model.resize_token_embeddings({VOCABULARY + len(ADDED)})" in readme


def test_full_finetuning_publishes_a_larger_model(tmp_path: Path, inputs: Path) -> None:
    report = run(config(inputs, tmp_path / "output"))
    result = tmp_path / "output" / "result"
    loaded = AutoModelForCausalLM.from_pretrained(result)
    assert loss_of(loaded, tmp_path / "output") == pytest.approx(report.metrics["val.loss"], rel=1e-5)
    assert json.loads((result / "config.json").read_text())["vocab_size"] == VOCABULARY + len(ADDED)
    assert pieces(result) == [VOCABULARY, VOCABULARY + 1]


@pytest.mark.parametrize("method", [{}, LORA], ids=["fft", "lora"])
def test_two_ranks_that_shard_train_alike(tmp_path: Path, inputs: Path, method: Any) -> None:
    alone = run(config(inputs, tmp_path / "alone", **method))
    settings = config(
        inputs, tmp_path / "both", engine="fsdp2", mesh__processes_per_node=2, mesh__data_parallel=2,
        batch={"per_device": 1, "accumulation": 2}, **method,
    )  # fmt: skip
    found, other = values(run_ranks(2, work.run_on_ranks, settings))
    assert found.metrics == other.metrics
    for name, value in alone.metrics.items():
        assert found.metrics[name] == pytest.approx(value, rel=1e-5), name


def test_training_continues_from_their_rows(tmp_path: Path, inputs: Path) -> None:
    first = run(config(inputs, tmp_path / "first", **LORA))
    lora = models.lora(rank=16, alpha=32.0, source=str(tmp_path / "first"))
    second = run(config(inputs, tmp_path / "second", method="lora", lora=lora))
    assert second.metrics["val.loss.initial"] == pytest.approx(first.metrics["val.loss"], rel=1e-6)
    assert second.metrics["val.loss"] < first.metrics["val.loss"]  # type: ignore[operator]


def test_rows_that_the_base_has_already_are_kept(tmp_path: Path, inputs: Path) -> None:
    models.model_folder(tmp_path / "base" / "model")  # which has 1024
    for path in ("rows.jsonl", "held-out.jsonl"):
        (tmp_path / "base" / path).write_text((inputs / path).read_text())
    report = run(config(tmp_path / "base", tmp_path / "output", **LORA))
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base" / "model"), str(tmp_path / "output" / "result")
    )
    assert loss_of(theirs, tmp_path / "output") == pytest.approx(report.metrics["val.loss"], rel=1e-5)
    assert "resize" not in (tmp_path / "output" / "result" / "README.md").read_text()


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a token that exists": (
        {"added_tokens": ("<|im_end|>",)},
        ConfigRefused,
        'data.added_tokens: "<|im_end|>" is a token of job.model already; name it in training.lora.trainable_tokens',
    ),
    "a letter": (
        {"added_tokens": ("a",)},
        ConfigRefused,
        'data.added_tokens: "a" is a token of job.model already; name it',
    ),
    "the spelling of another token": (
        {"added_tokens": ("Ġ",)},
        ConfigRefused,
        "is how the tokenizer of job.model spells another token; choose",
    ),
    "white space": (
        {"added_tokens": ("\n\n",)},
        ConfigRefused,
        "is white space, which templates and rows are",
    ),
    "a part of a template": (
        {"added_tokens": ("<|im_start|>user",)},
        ConfigRefused,
        'contains "<|im_start|>", which is a token already',
    ),
    "a text of several tokens": (
        {"method": "lora", "lora": models.lora(trainable_tokens=("<|im_emd|>",))},
        ConfigRefused,
        'training.lora.trainable_tokens: "<|im_emd|>" is 10 tokens of job.model (did you mean <|im_end|>?), and only',
    ),
    "rows of a module in full": (
        {
            "method": "lora",
            "lora": models.lora(trainable_tokens=("<|im_end|>",), modules_to_save=("embed_tokens", "lm_head")),
        },
        ModelRefused,
        "training.lora.trainable_tokens: model.embed_tokens is trained in full (training.lora.modules_to_save)",
    ),
    "rows of a module with an adapter": (
        {"method": "lora", "lora": models.lora(trainable_tokens=("<|im_end|>",), target_modules=("lm_head",))},
        ModelRefused,
        "training.lora.trainable_tokens: lm_head gets an adapter (training.lora.target_modules)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, inputs: Path, case: str) -> None:
    changes, kind, message = REFUSED[case]
    [ended] = run_ranks(1, work.run, config(inputs, tmp_path / "output", **changes), tmp_path / "handoff")
    assert isinstance(ended.error, kind)
    assert message in str(ended.error)


def test_tokens_without_rows_in_an_earlier_adapter_are_refused(tmp_path: Path, inputs: Path) -> None:
    run(config(inputs, tmp_path / "first", **LORA))
    lora = models.lora(source=str(tmp_path / "first"))
    for number, (added, message) in enumerate((
        ((*ADDED, "<more>"), f"training.lora.from: token {VOCABULARY + 2} is null in"),
        ((), f'training.lora.from: token {VOCABULARY} is "<sum>" in'),
        (ADDED[::-1], f'training.lora.from: token {VOCABULARY} is "<sum>" in'),
    )):  # fmt: skip
        settings = config(inputs, tmp_path / "second", method="lora", lora=lora, added_tokens=added)
        [ended] = run_ranks(1, work.run, settings, tmp_path / f"handoff {number}")
        assert isinstance(ended.error, ConfigRefused)
        assert message in str(ended.error)
    (tmp_path / "first" / "result").rename(tmp_path / "copy")
    change(tmp_path / "copy" / "adapter_config.json", trainable_token_indices=None)
    tensors = safetensors.torch.load_file(tmp_path / "copy" / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "token_adapter" not in name}
    safetensors.torch.save_file(kept, tmp_path / "copy" / "adapter_model.safetensors")
    (tmp_path / "copy" / MARKER).unlink()
    lora = models.lora(source=str(tmp_path / "copy"))
    [ended] = run_ranks(1, work.run, config(inputs, tmp_path / "third", method="lora", lora=lora), tmp_path / "h")
    assert "has rows of no module, and here those of" in str(ended.error)


def test_a_tokenizer_with_gaps_between_its_numbers_gets_no_tokens(tmp_path: Path, inputs: Path) -> None:
    base = shutil.copytree(inputs / "model", tmp_path / "model")
    found = json.loads((base / "tokenizer.json").read_text())
    found["added_tokens"] = [dict(each, id=each["id"] + 1) for each in found["added_tokens"]]
    found["model"]["vocab"]["Ń"] = 261
    (base / "tokenizer.json").write_text(json.dumps(found))
    many = [f"<n{number}>" for number in range(8)]
    with pytest.raises(ModelRefused, match=r"tokenizer.json leaves numbers out between its tokens"):
        vocabulary.with_tokens(base, tmp_path / "grown", many)


def test_a_base_with_our_file_is_refused(tmp_path: Path, inputs: Path) -> None:
    base = shutil.copytree(inputs / "model", tmp_path / "model")
    (base / sources.GROWTH).write_text('{"before": 258, "after": 200000}')
    with pytest.raises(ModelRefused, match=r"finetune-vocabulary.json belongs in folders that the trainer makes"):
        sources.model_folder(str(base))


def test_a_tied_base_whose_files_have_two_copies_is_merged_in_both(tmp_path: Path) -> None:
    base = models.model_folder(tmp_path / "model", vocabulary=VOCABULARY, tied=True)
    tensors = safetensors.torch.load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    safetensors.torch.save_file(tensors, base / "model.safetensors", {"format": "pt"})
    made: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(target_modules=["q_proj"], trainable_token_indices=[5, 257]),
    )
    result_work.disturb(made)
    made.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    merging.run(tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert float((result_work.logits(merged) - result_work.logits(made)).abs().max()) <= 1e-5


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


HALF: dict[str, tuple[dict[str, Any], str]] = {
    "rows of one of two": (
        {"embed_tokens": [5], "lm_head": [6, 7]},
        "name lm_head, and its file has no rows",
    ),
    "two keys of one": ({"model.embed_tokens": [5], "embed_tokens": [6]}, "and trainable_token_indices of"),
    "no token": ({"embed_tokens": []}, "and trainable_token_indices of"),
}


@pytest.mark.parametrize("case", HALF)
def test_half_of_the_rows_is_not_merged(tmp_path: Path, case: str) -> None:
    base = models.model_folder(tmp_path / "model", vocabulary=VOCABULARY)
    made: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [5]}),
    )
    made.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    named, message = HALF[case]
    change(tmp_path / "adapter" / "adapter_config.json", trainable_token_indices=named)
    with pytest.raises(ModelRefused, match=re.escape(message)):
        merging.run(tmp_path / "adapter", tmp_path / "merged")


def test_a_whole_matrix_beside_the_embedding_does_not_make_that_larger(tmp_path: Path) -> None:
    architectures.model("gpt2").save_pretrained(tmp_path / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert model.config.n_positions != model.config.vocab_size
    made: Any = get_peft_model(
        model, LoraConfig(target_modules=["c_attn"], modules_to_save=["wpe"], fan_in_fan_out=True)
    )
    made.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    merging.run(tmp_path / "adapter", tmp_path / "merged")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.vocab_size == model.config.vocab_size


def test_a_model_that_does_not_say_its_size_gets_none(tmp_path: Path, inputs: Path) -> None:
    base = models.model_folder(tmp_path / "model", vocabulary=VOCABULARY)
    found = json.loads((base / "config.json").read_text())
    del found["vocab_size"]
    (base / "config.json").write_text(json.dumps(found))
    settings = models.run_config(base, inputs / "rows.jsonl", tmp_path / "output", added_tokens=ADDED)
    with pytest.raises(ModelRefused, match=r"config.json has no vocab_size, so no tokens are added"):
        preparation.prepare(settings, 0, tmp_path, lambda _: None)
