"""Layers that recompute: the same results, less memory, and as many as the memory asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from bench.gpu import shapes
from bench.gpu.shapes import LLAMA_1B, LLAMA_3B, LLAMA_8B, SMOL, Work
from finetune_api.runtime.choices import Engine, Method, Recompute
from finetune_api.runtime.run_config import Lora, RunConfig
from finetune_trainer import activations, adapters, attention, chunked_loss, loss, mesh, saved
from finetune_trainer.activations import Estimate, Fixed
from finetune_trainer.environment import RankInfo
from finetune_trainer.errors import ModelRefused
from finetune_trainer.saved import Saved
from trainer import activations_work as work
from trainer import architectures, models
from trainer.ranks import run_ranks, values

NONE, SELECTIVE, FULL = Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL
LAYERS = 4
CALLS = {NONE: [1, 1, 1, 1], SELECTIVE: [2, 1, 2, 1], FULL: [2, 2, 2, 2], 3: [2, 2, 2, 1]}
"""How often each layer of the small model computes in a micro batch."""
METHODS: dict[str, dict[str, Any]] = {
    "fft": {},
    "lora with dropout on bf16": {"method": "lora", "lora": models.lora(dropout=0.2), "precision": "bf16"},
    "fft in fp16": {"precision": "fp16"},
}
LAYOUTS = {"single": 1, "ddp": 2, "fsdp2": 2}
CASES = [("single", method) for method in METHODS] + [
    (engine, method) for engine in ("ddp", "fsdp2") for method in ("fft", "lora with dropout on bf16")
]
GIB = 2**30


def _config(tmp_path: Path, world: int = 1, **changes: Any) -> RunConfig:
    return models.run_config(
        tmp_path / "model", tmp_path / "rows", tmp_path / "out",
        mesh__processes_per_node=world, mesh__data_parallel=world, **changes,
    )  # fmt: skip


@pytest.mark.parametrize(("engine", "method"), CASES)
def test_results_have_the_same_bits_whichever_layers_recompute(tmp_path: Path, engine: str, method: str) -> None:
    folder = models.model_folder(tmp_path / "model")
    config = _config(tmp_path, LAYOUTS[engine], engine=engine, **METHODS[method])
    for ran in values(run_ranks(LAYOUTS[engine], work.runs, folder, config, list(CALLS))):
        expected, _ = ran[0]
        for how, (results, calls) in zip(CALLS, ran, strict=True):
            assert calls == [2 * work.STEPS * each for each in CALLS[how]], how
            assert results.keys() == expected.keys()
            assert [name for name, tensor in results.items() if not torch.equal(tensor, expected[name])] == [], how


@pytest.mark.parametrize("lora", [None, Lora.model_validate(models.lora(dropout=0.2))], ids=["fft", "lora"])
def test_autograd_saves_less_by_what_the_chosen_layers_do_not_keep(lora: Lora | None) -> None:
    inputs = torch.arange(256).view(2, 128)
    held = {}
    for how in (NONE, SELECTIVE, FULL):
        built: nn.Module = models.llama()
        attention.use(built)  # type: ignore[arg-type]
        built = built if lora is None else adapters.attach(built, lora)  # type: ignore[arg-type]
        built.train()
        if how is NONE:
            layers = saved.of_layers(built, activations.layers(built), lambda: built(input_ids=inputs))  # noqa: B023
        activations.recompute(built, how)
        held[how] = work.saved_bytes(built, lambda: built(input_ids=inputs))  # noqa: B023
    assert held[NONE] > 1.5 * held[SELECTIVE]
    assert held[SELECTIVE] > 1.5 * held[FULL]
    for how, chosen in ((SELECTIVE, (0, 2)), (FULL, range(LAYERS))):
        less = sum(layers[i].activations - layers[i].inputs for i in chosen)
        assert held[NONE] - held[how] == pytest.approx(less, rel=0.03), how


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # PEFT, of GPT-2
@pytest.mark.parametrize("kind", architectures.ALL)
@pytest.mark.parametrize("lora", [None, Lora.model_validate(models.lora())], ids=["fft", "lora"])
def test_what_is_counted_without_a_device_is_what_layers_save(kind: str, lora: Lora | None) -> None:
    rows, length = 2, 48
    counted, real = (_built(kind, lora, device) for device in ("meta", "cpu"))
    inputs = torch.randint(3, 89, (rows, length), generator=torch.Generator().manual_seed(0))
    base = loss.causal(real)
    expected = saved.of_layers(base, activations.layers(real), lambda: base(input_ids=inputs, use_cache=False))
    found = activations.count(counted, rows, length)
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        assert one.activations == pytest.approx(other.activations, rel=0.03)
        assert 0 < one.inputs == other.inputs


def test_dropout_saves_a_byte_per_element_on_a_gpu() -> None:
    layer = nn.Dropout(0.5)
    numbers = torch.ones(4, 8, dtype=torch.bfloat16, device="meta", requires_grad=True)
    with saved.AsOnGpu():
        assert saved.of_layers(layer, [layer], lambda: layer(numbers)) == [Saved(activations=32, inputs=64)]


def _built(kind: str, lora: Lora | None, device: str) -> nn.Module:
    base = architectures.model(kind)
    attention.replace(base)
    base.train()
    for dropout in (each for each in base.modules() if isinstance(each, nn.Dropout)):
        dropout.p = 0.0  # on a CPU it saves other things than on a GPU
    built: nn.Module = base if lora is None else adapters.attach(base, lora)
    return built.to(device)


ALL = 2**40
MEASURED = [
    (Work(SMOL, Method.FFT, 16), 0, ALL, 42.6),
    (Work(SMOL, Method.FFT, 16), 0, 2**28, 27.8),
    (Work(LLAMA_1B, Method.FFT, 6), 0, ALL, 53.9),
    (Work(LLAMA_1B, Method.LORA, 6), 0, ALL, 38.7),
    (Work(LLAMA_1B, Method.FFT, 6), 0, 2**28, 41.3),
    (Work(LLAMA_1B, Method.FFT, 6), 0, 2**27, 39.8),
    (Work(LLAMA_1B, Method.LORA, 6), 0, 2**28, 24.1),
    (Work(LLAMA_1B, Method.LORA, 6), 0, 2**27, 22.6),
    (Work(SMOL, Method.LORA, 16), 0, 2**27, 22.6),
    (Work(LLAMA_3B, Method.LORA, 4), 0, 2**27, 33.4),
    (Work(LLAMA_3B, Method.FFT, 4), LLAMA_3B.layers, 2**27, 56.9),
    (Work(LLAMA_8B, Method.LORA, 4), LLAMA_8B.layers, 2**27, 19.5),
]
"""Recomputed layers, logits of a chunk of the loss, and torch's peak in GiB on an H100 (docs/benchmarks.md)."""


@pytest.mark.parametrize(("case", "recomputed", "chunk", "measured"), MEASURED, ids=str)
def test_the_estimate_is_near_the_peak_that_was_measured(
    tmp_path: Path, case: Work, recomputed: int, chunk: int, measured: float
) -> None:
    found = _estimated(tmp_path, case, recomputed, chunk)
    assert found / GIB == pytest.approx(measured, rel=0.08)


def _estimated(tmp_path: Path, case: Work, recomputed: int, chunk: int = chunked_loss.GPU_CHUNK) -> int:
    config = case.config(torch.device("cpu"))
    shapes.architecture(case.shape).save_pretrained(tmp_path)
    outline = activations.outlined(tmp_path, config)
    constant = activations.fixed(outline, config, _mesh(config), case.length)
    logits = case.rows * case.length * case.shape.vocabulary
    more = (min(chunk, logits) - min(chunked_loss.GPU_CHUNK, logits)) * activations.LOSS_BYTES
    layers = activations.count(outline, case.rows, case.length)
    return activations.peak(layers, recomputed, replace(constant, loss=constant.loss + more))


def _mesh(config: RunConfig, device: str = "cpu") -> mesh.RankMesh:
    return mesh.build(config, RankInfo(0, config.mesh.world_size, 0, torch.device(device)))


def test_shards_divide_what_ranks_hold_and_gather_a_layer_at_a_time(tmp_path: Path) -> None:
    models.llama().save_pretrained(tmp_path / "model")
    one = _config(tmp_path, precision="bf16")
    outline = activations.outlined(tmp_path / "model", one)
    alone = activations.fixed(outline, one, _mesh(one), 100)
    parameters = sum(p.numel() for p in outline.parameters())
    assert (alone.weights, alone.gradients, alone.gathered) == (14 * parameters, 4 * parameters, 0)
    four = _config(tmp_path, 4, precision="bf16", engine="fsdp2")
    sharded = activations.fixed(outline, four, _mesh(four), 100)
    assert (sharded.weights, sharded.gradients) == (14 * parameters // 4, 4 * parameters // 4)
    layer = sum(p.numel() for name, p in outline.named_parameters() if ".layers.0." in name)
    outside = parameters - LAYERS * layer
    assert sharded.gathered == 2 * (outside + 2 * layer) + (2 + 4) * max(layer, outside)
    assert four.engine is Engine.FSDP2


@pytest.mark.parametrize(
    ("engine", "precision", "weights", "gradients"),
    [  # bytes of a parameter that each rank holds, and that all four share
        ("zero1", "bf16", (2, 12), (4, 0)),
        ("zero2", "bf16", (2, 12), (0, 4)),
        ("zero3", "bf16", (0, 14), (0, 4)),
        ("zero1", "fp32", (4, 12), (4, 0)),
        ("zero2", "fp32", (4, 12), (0, 4)),
        ("zero3", "fp32", (0, 16), (0, 4)),
    ],
)
def test_a_stage_of_zero_divides_what_its_name_says(
    tmp_path: Path, engine: str, precision: str, weights: tuple[int, int], gradients: tuple[int, int]
) -> None:
    models.llama().save_pretrained(tmp_path / "model")
    config = _config(tmp_path, 4, precision=precision, engine=engine, rounding="nearest")
    outline = activations.outlined(tmp_path / "model", config)
    found = activations.fixed(outline, config, _mesh(config), 100)
    parameters = sum(p.numel() for p in outline.parameters())
    of_rank = [whole * parameters + part * parameters // 4 for whole, part in (weights, gradients)]
    assert [found.weights, found.gradients] == of_rank
    assert (found.gathered > 0) == (engine == "zero3")


TEN = [Saved(activations=10, inputs=1)] * 10
BESIDE = Fixed(weights=100, gradients=40, accumulates=False, loss=5)


@pytest.mark.parametrize(
    ("free", "beside", "recomputed", "fits"),
    [
        pytest.param(10_000, BESIDE, 0, True, id="all fits"),
        pytest.param(234, BESIDE, 0, True, id="just fits, with a tenth in reserve"),
        pytest.param(233, BESIDE, 2, True, id="the first that recomputes frees 9 and needs 10 in the backward pass"),
        pytest.param(190, BESIDE, 6, True, id="most recompute"),
        pytest.param(178, BESIDE, 7, True, id="more would not help: the gradients of the step are the peak"),
        pytest.param(150, BESIDE, 10, False, id="too little even then"),
        pytest.param(10, BESIDE, 10, False, id="less than the weights"),
        pytest.param(280, replace(BESIDE, loss=60), 1, True, id="the loss needs more than a layer"),
        pytest.param(300, replace(BESIDE, accumulates=True), 0, True, id="accumulated gradients fit"),
        pytest.param(250, replace(BESIDE, accumulates=True), 4, True, id="accumulated gradients take room"),
        pytest.param(300, replace(BESIDE, gathered=65), 2, True, id="gathered shards take room"),
    ],
)
def test_as_few_layers_recompute_as_fit(free: int, beside: Fixed, recomputed: int, fits: bool) -> None:
    found = activations.estimate(TEN, beside, free)
    assert (found.recomputed, found.fits) == (recomputed, fits)


@pytest.mark.parametrize("method", METHODS)
def test_less_memory_makes_more_layers_of_a_model_recompute_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    models.llama().save_pretrained(tmp_path / "model")
    config = _config(tmp_path, **{**METHODS[method], "batch__per_device": 64})
    enough = 2 * activations.peak(*_counted(tmp_path / "model", config))
    found = []
    for share in (1.0, 0.54, 0.5, 0.01):
        caplog.clear()
        found.append(activations.fewest(tmp_path / "model", config, _mesh(config), 500, int(share * enough)))
        [message] = [record.getMessage() for record in caplog.records]
        assert ("if memory runs out" in message) == (share == 0.01)
        assert {0: "none", LAYERS: "all"}.get(found[-1], str(found[-1])) == message.split()[1]
    assert found[0] == 0
    assert found[-1] == LAYERS
    assert found == sorted(found)
    assert len(set(found)) > 2


def _counted(folder: Path, config: RunConfig) -> tuple[list[Saved], int, Fixed]:
    outline = activations.outlined(folder, config)
    return activations.count(outline, 64, 500), 0, activations.fixed(outline, config, _mesh(config), 500)


def test_a_model_that_cannot_be_counted_recomputes_all_layers_and_the_log_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def need_numbers(*_: object, **__: object) -> None:
        raise NotImplementedError("aten::nonzero on meta")

    models.llama().save_pretrained(tmp_path / "model")
    config = _config(tmp_path)
    monkeypatch.setattr(LlamaForCausalLM, "forward", need_numbers)
    assert activations.fewest(tmp_path / "model", config, _mesh(config), 500, 1 << 40) == LAYERS
    assert "LlamaForCausalLM saves could not be counted (NotImplementedError: aten::nonzero on meta)" in caplog.text


@pytest.mark.parametrize("total", [1, 2, 7, 32])
def test_layers_are_spread_evenly(total: int) -> None:
    for count in range(1, total + 1):
        chosen = sorted(activations.evenly(count, total))
        gaps = {b - a for a, b in zip(chosen, [*chosen[1:], total + chosen[0]], strict=True)}
        assert len(chosen) == count
        assert max(gaps) - min(gaps) <= 1


def test_the_log_says_what_was_chosen_and_why() -> None:
    assert activations.sentence(Estimate(layers=32, recomputed=12, peak=68 * GIB, free=79 * GIB), 4, 2047) == (
        "Activations: 12 of 32 layers are recomputed in the backward pass; 4 x 2,047 tokens then take about 68.0 of "
        "79.0 GiB (hyperparameters.parallelism.activation_checkpointing: auto)."
    )


def test_the_log_names_the_remedies_where_not_even_all_layers_are_enough() -> None:
    assert activations.sentence(Estimate(layers=32, recomputed=32, peak=90 * GIB, free=79 * GIB), 4, 2047) == (
        "Activations: all of 32 layers are recomputed in the backward pass, and 4 x 2,047 tokens still take about "
        "90.0 of 79.0 GiB, too much with 10% in reserve; if memory runs out, lower hyperparameters.per_device_batch "
        "or hyperparameters.sequence_length, shard with hyperparameters.parallelism.fsdp, or add GPUs."
    )


def test_a_job_that_says_nothing_keeps_all_activations_on_a_cpu(tmp_path: Path) -> None:
    config = _config(tmp_path)
    assert activations.asked(config) is Recompute.AUTO
    assert activations.decide(tmp_path, config, _mesh(config), 100) is NONE


def test_what_the_job_says_is_done_on_any_device(tmp_path: Path) -> None:
    said = {how: {"recompute": how} for how in (NONE, SELECTIVE, FULL)} | {FULL: {"activation_checkpointing": True}}
    models.llama().save_pretrained(tmp_path)
    for how, changes in said.items():
        config = _config(tmp_path, **changes)
        assert activations.decide(tmp_path, config, _mesh(config, "cuda"), 100) is how


def test_layers_of_other_parts_and_of_frozen_ones_are_left_alone() -> None:
    built = architectures.model("gemma3")
    activations.recompute(built, FULL)
    recomputing = [name for name, module in built.named_modules() if getattr(module, "gradient_checkpointing", False)]
    assert {name for name in recomputing if ".layers." in name} == {
        "model.language_model.layers.0", "model.language_model.layers.1",
    }  # fmt: skip


@pytest.mark.parametrize("how", [SELECTIVE, FULL])
def test_an_architecture_that_cannot_recompute_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Recompute
) -> None:
    models.llama().save_pretrained(tmp_path)
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    config = _config(tmp_path, recompute=how)
    with pytest.raises(ModelRefused, match=f"activation_checkpointing: {how}: LlamaForCausalLM cannot recompute"):
        activations.decide(tmp_path, config, _mesh(config), 100)


def test_layers_are_found_where_the_decoder_is_said_to_be_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of ModernBERT's decoder, which is its output head."""
    monkeypatch.setattr(LlamaForCausalLM, "get_decoder", lambda self: self.lm_head)
    assert len(activations.layers(models.llama())) == LAYERS
