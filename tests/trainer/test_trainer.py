"""Complete runs: their reports agree with what transformers and PEFT compute from their results."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import LlamaForCausalLM

from finetune_api.runtime.report import EvaluationRecord, FinalReport, ProgressRecord, ResumeRecord
from finetune_api.runtime.run_config import RunConfig
from finetune_trainer.errors import ConfigRefused, ModelRefused, NonFinite, OutputRefused, StorageFailed
from trainer import models, quantised
from trainer import trainer_work as work
from trainer.ranks import run_ranks, values

ADAPTERS: dict[str, Any] = {"method": "lora", "lora": models.lora(dropout=0.1)}
VALIDATED = {"every_steps": 2, "keep_best": True, "metric": "val.loss", "greater_is_better": False}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    models.model_folder(folder / "model", tied=True)
    models.dataset(folder / "train.jsonl")
    models.dataset(folder / "held-out.jsonl", 7, seed=500)
    return folder


def config(inputs: Path, output: Path, *, model: Path | None = None, **changes: Any) -> RunConfig:
    return models.run_config(
        model or inputs / "model", inputs / "train.jsonl", output,
        data__validation=str(inputs / "held-out.jsonl"), **{"validation": VALIDATED, **changes},
    )  # fmt: skip


def run(settings: RunConfig, handoff: Path) -> FinalReport:
    report: FinalReport = values(run_ranks(1, work.run, settings, handoff))[0]
    return report


@pytest.mark.parametrize(
    "method", [{}, ADAPTERS, {"activation_checkpointing": True}], ids=["fft", "lora", "recomputed"]
)
def test_losses_are_those_that_transformers_and_peft_find(
    tmp_path: Path, inputs: Path, method: dict[str, Any]
) -> None:
    settings = config(inputs, tmp_path / "out", **method)
    report = run(settings, tmp_path / "handoff")
    before, after = values(run_ranks(1, work.losses_by_transformers, settings, tmp_path / "handoff"))[0]
    assert report.metrics["val.loss.initial"] == pytest.approx(before, rel=1e-5)
    assert report.metrics["val.loss"] == pytest.approx(after, rel=1e-5)
    assert after < before - 0.5, "it learned"


@pytest.mark.parametrize("method", [{}, ADAPTERS], ids=["fft", "lora"])
def test_a_quantised_model_is_trained_as_its_copy_in_bf16(
    tmp_path: Path, inputs: Path, method: dict[str, Any]
) -> None:
    quantised.save_fp8(
        models.llama(), models.model_folder(tmp_path / "model"), models.model_folder(tmp_path / "plain")
    )
    results = []
    for name in ("model", "plain"):
        settings = config(inputs, tmp_path / f"of {name}", model=tmp_path / name, **method)
        report = run(settings, tmp_path / f"handoff {name}")
        [weights] = (tmp_path / f"of {name}" / "result").glob("*.safetensors")
        results.append((report.metrics, weights.read_bytes()))
    assert results[0] == results[1]


def test_the_result_is_the_best_step_and_not_the_last(tmp_path: Path, inputs: Path) -> None:
    settings = config(inputs, tmp_path / "out", optimizer__learning_rate=0.03, schedule__epochs=3)
    report = run(settings, tmp_path / "handoff")
    evaluations = [r for r in work.records(tmp_path / "out") if isinstance(r, EvaluationRecord)]
    assert [r.step for r in evaluations] == list(range(0, 19, 2)), "every second step, from 0 to the last"
    best = min(evaluations[1:], key=lambda r: r.loss or 0)
    assert best.step < report.step == 18, "this learning rate overshoots, or the test shows nothing"
    assert (report.best_step, report.metrics["val.loss"]) == (best.step, best.loss)
    _, found = values(run_ranks(1, work.losses_by_transformers, settings, tmp_path / "handoff"))[0]
    assert found == pytest.approx(best.loss, rel=1e-5)


def test_without_keep_best_the_result_is_the_last_step(tmp_path: Path, inputs: Path) -> None:
    last = {**VALIDATED, "keep_best": False}
    settings = config(inputs, tmp_path / "out", validation=last, optimizer__learning_rate=0.03)
    report = run(settings, tmp_path / "handoff")
    _, found = values(run_ranks(1, work.losses_by_transformers, settings, tmp_path / "handoff"))[0]
    assert report.metrics["val.loss"] == pytest.approx(found, rel=1e-5)


def past_its_best(inputs: Path, output: Path, *, keep_best: bool) -> int:
    """Do all steps of a run and remove its result: it was killed before it published. Returns its best step."""
    report = run(overshooting(inputs, output, keep_best=keep_best), output.with_name("handoff"))
    shutil.rmtree(output / "result")
    assert report.best_step is not None
    assert report.best_step < report.step == LAST, "this learning rate overshoots, or the tests show nothing"
    return report.best_step


LAST = 6


def overshooting(inputs: Path, output: Path, *, keep_best: bool = True, **changes: Any) -> RunConfig:
    return config(
        inputs, output, validation=VALIDATED | {"keep_best": keep_best}, optimizer__learning_rate=0.03,
        schedule__epochs=1, checkpointing__keep=1, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def unpublished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The output of such a run, which keeps its best, and its best step."""
    output = tmp_path_factory.mktemp("unpublished") / "out"
    return output, past_its_best(inputs, output, keep_best=True)


def last_evaluation(output: Path) -> EvaluationRecord:
    return [record for record in work.records(output) if isinstance(record, EvaluationRecord)][-1]


def test_a_best_checkpoint_that_rots_is_forgotten_by_the_next_start(
    tmp_path: Path, inputs: Path, unpublished: tuple[Path, int]
) -> None:
    output = shutil.copytree(unpublished[0], tmp_path / "out")
    shard = output / "checkpoints" / f"step-{unpublished[1]:08d}" / "shard-00000.bin"
    shard.write_bytes(bytes(shard.stat().st_size))
    [first] = run_ranks(1, work.run, overshooting(inputs, output), tmp_path / "first")
    assert isinstance(first.error, StorageFailed)
    assert "is corrupt" in str(first.error)
    second = run(overshooting(inputs, output), tmp_path / "second")
    assert (second.best_step, second.metrics["val.loss"]) == (LAST, last_evaluation(output).loss)
    assert f"The checkpoint of step {unpublished[1]}, the best so far, is lost" in second.message


def test_keep_best_switched_on_after_the_best_was_pruned_publishes_what_is_left(tmp_path: Path, inputs: Path) -> None:
    output = tmp_path / "out"
    best = past_its_best(inputs, output, keep_best=False)
    (output / "report.json").write_text("of the run before")
    report = run(overshooting(inputs, output), tmp_path / "again")
    assert (report.best_step, report.metrics["val.loss"]) == (LAST, last_evaluation(output).loss)
    assert f"The checkpoint of step {best}, the best so far, is lost" in report.message
    assert not (output / "report.json").exists(), "a peer's loss must not wait for the report of an earlier run"


def test_a_result_that_cannot_be_read_now_is_not_made_again(
    tmp_path: Path, inputs: Path, unpublished: tuple[Path, int]
) -> None:
    output = shutil.copytree(unpublished[0], tmp_path / "out")
    (output / "result").mkdir()
    (output / "result" / "COMPLETE").symlink_to("COMPLETE")
    [ended] = run_ranks(1, work.run, overshooting(inputs, output), tmp_path / "handoff")
    assert isinstance(ended.error, StorageFailed)
    assert f"cannot read {output / 'result' / 'COMPLETE'}: Too many levels" in str(ended.error)
    assert [path.name for path in (output / "result").iterdir()] == ["COMPLETE"]


@pytest.mark.parametrize("others", [True, False], ids=["other rows", "the same rows in another file"])
def test_losses_of_other_validation_rows_are_not_compared(
    tmp_path: Path, inputs: Path, unpublished: tuple[Path, int], others: bool
) -> None:
    output = shutil.copytree(unpublished[0], tmp_path / "out")
    rows = models.dataset(tmp_path / "rows.jsonl", 7, seed=501 if others else 500)
    settings = overshooting(inputs, output)
    data = settings.data.model_copy(update={"validation": str(rows)})
    report = run(settings.model_copy(update={"data": data}), tmp_path / "again")
    assert report.best_step == (LAST if others else unpublished[1])
    assert ("val.loss.initial" in report.metrics) == (not others), "nobody knows the loss of others before training"
    assert (f"The validation rows changed before step {LAST}" in report.message) == others
    assert not others or report.metrics["val.loss"] == last_evaluation(output).loss


@pytest.mark.parametrize(
    ("dtype", "keep_best", "same"),
    [
        pytest.param(torch.bfloat16, False, True, id="bf16, the last step"),
        pytest.param(torch.bfloat16, True, True, id="bf16, the best step"),
        pytest.param(torch.float32, False, False, id="fp32: rounded again, with the bits of step 0"),
    ],
)
def test_a_result_in_bf16_has_the_bits_that_were_evaluated(
    tmp_path: Path, inputs: Path, dtype: torch.dtype, keep_best: bool, same: bool
) -> None:
    """What is in bf16 already is not rounded again by the run that begins with it."""
    shutil.copytree(inputs / "model", tmp_path / "model")
    rounded = LlamaForCausalLM.from_pretrained(inputs / "model", dtype=torch.bfloat16)
    exact = rounded if dtype is torch.bfloat16 else rounded.float()  # type: ignore[no-untyped-call]
    exact.save_pretrained(tmp_path / "model")
    changes: dict[str, Any] = {"precision": "bf16", "validation": {**VALIDATED, "keep_best": keep_best}}
    first = config(
        inputs, tmp_path / "out", model=tmp_path / "model", optimizer__learning_rate=0.03, schedule__epochs=3,
        **changes,
    )  # fmt: skip
    report = run(first, tmp_path / "handoff")
    assert report.best_step is not None
    assert report.best_step < report.step, "this learning rate overshoots, or the best step is the last one"
    second = config(
        inputs, tmp_path / "again", model=tmp_path / "out" / "result", schedule__max_steps=1, **changes
    )  # fmt: skip
    begins = run(second, tmp_path / "handoff-again").metrics["val.loss.initial"]
    assert (begins == report.metrics["val.loss"]) == same
    assert begins == pytest.approx(report.metrics["val.loss"], rel=0.01)


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_losses_are_the_same_where_the_held_out_rows_are_spread_over_ranks(
    tmp_path: Path, inputs: Path, engine: str
) -> None:
    one = config(inputs, tmp_path / "one", schedule__max_steps=2)
    two = config(
        inputs, tmp_path / "two", schedule__max_steps=2, engine=engine, mesh__processes_per_node=2,
        mesh__data_parallel=2, batch={"per_device": 1, "accumulation": 2},
    )  # fmt: skip
    expected = run(one, tmp_path / "handoff").metrics
    assert expected.keys() == {"train.loss", "val.loss", "val.loss.initial"}
    for report in values(run_ranks(2, work.run_on_ranks, two)):
        assert report.metrics == pytest.approx(expected, rel=1e-5)


def test_evaluations_change_nothing_in_the_training(tmp_path: Path, inputs: Path) -> None:
    """Dropout is back afterwards, and draws the masks that it would have drawn."""
    found = []
    for name, validation in (("with", VALIDATED), ("without", None)):
        run(config(inputs, tmp_path / name, validation=validation, **ADAPTERS), tmp_path / f"handoff-{name}")
        found.append([r.loss for r in work.records(tmp_path / name) if isinstance(r, ProgressRecord)])
    assert found[0] == found[1]
    assert len(found[0]) == 12


def test_an_evaluation_interrupted_by_a_stop_is_repeated(tmp_path: Path, inputs: Path) -> None:
    settings = config(inputs, tmp_path / "uninterrupted", batch__per_device=4, batch__accumulation=1)
    uninterrupted = run(settings, tmp_path / "handoff")
    again = settings.model_copy(update={"output": str(tmp_path / "out")})
    stopped = values(run_ranks(1, work.run_stopped_everywhere, again, tmp_path / "handoff-again"))[0]
    assert (stopped.metrics, stopped.best_step) == (uninterrupted.metrics, uninterrupted.best_step)
    evaluations = [
        [r.model_copy(update={"time": 0.0}) for r in work.records(tmp_path / name) if isinstance(r, EvaluationRecord)]
        for name in ("uninterrupted", "out")
    ]
    assert evaluations[0] == evaluations[1]


def test_progress_is_reported_for_the_first_step_the_chosen_ones_and_the_last(tmp_path: Path, inputs: Path) -> None:
    settings = config(inputs, tmp_path / "out", validation=None, log_every_steps=5, schedule__name="linear")
    run(settings, tmp_path / "handoff")
    progress = [r for r in work.records(tmp_path / "out") if isinstance(r, ProgressRecord)]
    assert [r.step for r in progress] == [1, 5, 10, 12]
    assert [r.learning_rate for r in progress] == pytest.approx([1e-3, 8 / 12 * 1e-3, 3 / 12 * 1e-3, 1 / 12 * 1e-3])
    assert [r.epoch for r in progress] == pytest.approx([1 / 6, 5 / 6, 10 / 6, 2])
    assert progress[-1].eta_seconds == 0
    assert all((r.tokens_per_second or 0) > 0 for r in progress)


def test_a_run_whose_every_step_was_skipped_has_trained_nothing(tmp_path: Path, inputs: Path) -> None:
    settings = config(inputs, tmp_path / "out", validation=None, precision="fp16", schedule__max_steps=1)
    [ended] = run_ranks(1, work.run, settings, tmp_path / "handoff")
    assert isinstance(ended.error, NonFinite)
    assert "the gradients of all 1 steps overflowed fp16, so nothing was trained" in str(ended.error)
    assert not (tmp_path / "out" / "result").exists()


def test_a_volume_without_room_for_the_checkpoints_is_refused_before_the_first_step(
    tmp_path: Path, inputs: Path
) -> None:
    many: dict[str, Any] = {"schedule__max_steps": 10**9, "schedule__epochs": 10**9}
    settings = config(inputs, tmp_path / "out", checkpointing={"every_steps": 1, "keep": 10**9}, **many)
    leftover = tmp_path / "out" / "checkpoints" / ".tmp-step-00000001"
    for attempt in ("first", "second"):
        [ended] = run_ranks(1, work.run, settings, tmp_path / attempt)
        assert isinstance(ended.error, StorageFailed)
        assert re.search(
            r"out needs [\d.]+ GB, and its volume has .*lower training\.save_total_limit", str(ended.error)
        )
        assert not leftover.exists(), "room that a killed run has taken counts as free"
        leftover.mkdir(parents=True)


def test_the_report_counts_skipped_steps(tmp_path: Path, inputs: Path) -> None:
    report = run(config(inputs, tmp_path / "out", validation=None, precision="fp16"), tmp_path / "handoff")
    assert re.search(r"\d of 12 steps changed nothing: their gradients overflowed fp16\.", report.message)


@pytest.mark.parametrize(
    ("precision", "validation", "remedy"),
    [
        ("fp32", False, "lines 1, 2, 3, 4; nothing was trained before, so check the weights of job.model"),
        ("fp16", False, "lines 1, 2, 3, 4; hyperparameters.parallelism.fp16 ends at 65,504: compute in bf16"),
        ("fp32", True, "the validation loss after 0 steps is nan; nothing was trained before"),
    ],
)
def test_a_loss_that_is_no_number_names_the_step_and_the_lines(
    tmp_path: Path, inputs: Path, precision: str, validation: bool, remedy: str
) -> None:
    broken = models.model_folder(tmp_path / "model")
    weights = safetensors.torch.load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = torch.inf
    safetensors.torch.save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    changes = {} if validation else {"validation": None}
    settings = config(inputs, tmp_path / "out", model=broken, data__shuffle=False, precision=precision, **changes)
    [ended] = run_ranks(1, work.run, settings, tmp_path / "handoff")
    assert isinstance(ended.error, NonFinite)
    assert ("step 1: loss is nan" in str(ended.error)) is not validation
    assert remedy in str(ended.error)
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param("drop", "weights are missing: model.layers.1.mlp.up_proj.weight", id="missing"),
        pytest.param(
            "add", "the weight files have tensors that the model does not have: extra.weight", id="left over"
        ),
        pytest.param(
            "cut",
            "have a different shape than the model: ('model.layers.1.mlp.up_proj.weight'",
            id="of another shape",
        ),
        pytest.param(
            "round",
            "model.layers.1.mlp.up_proj.weight has the format torch.int8, which is not trained; save the model again",
            id="of integers",
        ),
    ],
)
def test_weights_that_do_not_fit_the_model_are_refused(
    tmp_path: Path, inputs: Path, change: str, reason: str
) -> None:
    broken = models.model_folder(tmp_path / "model")
    weights = safetensors.torch.load_file(broken / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "drop":
        del weights[name]
    elif change == "add":
        weights["extra.weight"] = torch.zeros(2)
    elif change == "round":
        weights[name] = weights[name].to(torch.int8)
    else:
        weights[name] = weights[name][:-1].clone()
    safetensors.torch.save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    settings = config(inputs, tmp_path / "out", model=broken)
    [ended] = run_ranks(1, work.run, settings, tmp_path / "handoff")
    assert isinstance(ended.error, ModelRefused), ended
    assert reason in str(ended.error)


def test_weights_that_change_while_they_are_loaded_are_refused(tmp_path: Path, inputs: Path) -> None:
    """Ranks may have read different files."""
    model = models.model_folder(tmp_path / "model")
    settings = config(inputs, tmp_path / "out", model=model)
    [ended] = run_ranks(1, work.run_while_weights_change, settings, tmp_path / "handoff")
    assert isinstance(ended.error, ModelRefused), ended
    assert f"model {model}: its files changed while they were loaded" in str(ended.error)
    assert run(settings, tmp_path / "again").step == 12, "what was never trained owns nothing"


@pytest.mark.parametrize(
    ("change", "refusal", "sentence"),
    [
        (
            "edit",
            ModelRefused,
            "chat_template.jinja changed while the run trained, and the result would have it",
        ),
        ("remove", StorageFailed, "can no longer be read"),
    ],
)
def test_a_model_that_changes_while_the_run_trains_does_not_get_into_its_result(
    tmp_path: Path, inputs: Path, change: str, refusal: type[Exception], sentence: str
) -> None:
    """Its weights are those of before. Once the files are back, the run publishes from its last checkpoint."""
    model = models.model_folder(tmp_path / "model")
    settings = config(inputs, tmp_path / "out", model=model, method="lora", lora=models.lora())
    shutil.copytree(model, tmp_path / "copy")
    [ended] = run_ranks(1, work.run_while_the_model_changes, settings, tmp_path / "handoff", change)
    assert isinstance(ended.error, refusal), ended
    assert sentence in str(ended.error)
    assert not (tmp_path / "out" / "result").exists()
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(tmp_path / "copy", model)
    assert run(settings, tmp_path / "again").step == 12
    assert [record.step for record in work.records(tmp_path / "out") if isinstance(record, ResumeRecord)] == [12]


def test_a_result_that_was_changed_costs_neither_it_nor_the_report_of_its_run(tmp_path: Path, inputs: Path) -> None:
    settings = config(inputs, tmp_path / "out")
    report = run(settings, tmp_path / "handoff")
    (tmp_path / "out" / "report.json").write_text(report.line())
    card = tmp_path / "out" / "result" / "README.md"
    published = card.read_bytes()
    card.write_text("about my model")
    [ended] = run_ranks(1, work.run, settings, tmp_path / "again")
    assert isinstance(ended.error, OutputRefused), ended
    assert not (tmp_path / "again" / "digest").exists(), "its launcher would write a report over that of the run"
    card.write_bytes(published)
    assert run(settings, tmp_path / "restored").metrics == report.metrics


def test_the_folder_of_the_model_is_no_output(tmp_path: Path, inputs: Path) -> None:
    model = models.model_folder(tmp_path / "model")
    settings = config(inputs, tmp_path / "x" / ".." / "model", model=model)
    [ended] = run_ranks(1, work.run, settings, tmp_path / "handoff")
    assert isinstance(ended.error, ConfigRefused), ended
    assert "is the folder of job.model" in str(ended.error)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"keep": 1}, id="the old one goes when the new one is complete"),
        pytest.param({"keep": 2}, id="all stay"),
        pytest.param({"keep": 2, "every": 2}, id="some go"),
        pytest.param({"keep": 2, "every": 6, "best": 6}, id="the best step is one that is saved anyway"),
        pytest.param({"keep": 1, "every": 0, "best": 4}, id="the best step is kept besides"),
        pytest.param({"keep": 1, "every": 100}, id="the last one and the result"),
    ],
)
def test_a_run_asks_for_the_space_that_it_takes(tmp_path: Path, inputs: Path, changes: dict[str, int]) -> None:
    """It has two epochs of six steps, and learns, so that each evaluation is the best so far."""
    best = changes.get("best")
    settings = config(
        inputs, tmp_path / "out", checkpointing__keep=changes["keep"],
        checkpointing__every_steps=changes.get("every", 0),
        validation=None if best is None else VALIDATED | {"every_steps": best},
    )  # fmt: skip
    [(asked, taken)] = values(run_ranks(1, work.run_measured, settings, tmp_path / "handoff"))
    assert 0.97 < taken / asked < 1.03


def test_a_target_module_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, inputs: Path) -> None:
    lora = models.lora(target_modules=("q_proj", "query"))
    settings = config(inputs, tmp_path / "out", method="lora", lora=lora)
    [ended] = run_ranks(1, work.run, settings, tmp_path / "handoff")
    assert isinstance(ended.error, ModelRefused)
    assert "training.lora.target_modules: the model has no module query; its linear modules are down_proj" in str(
        ended.error
    )
