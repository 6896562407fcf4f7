"""PiSSA and OLoRA: as in PEFT, the same on every layout and after a resume, published for the whole base."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from finetune_api.runtime.choices import Engine, LoraInit, Method, Precision
from finetune_api.runtime.run_config import Lora, RunConfig
from finetune_trainer import adapters, checkpoint, decomposition, quantised_layer
from finetune_trainer.decomposition import Size
from finetune_trainer.errors import ModelRefused
from trainer import architectures, decomposition_work, models, qlora_work, result_work, trainer_work
from trainer.qlora_work import ADAPTERS, Job, Run, far
from trainer.ranks import run_ranks, values

LOSS = 1e-5
"""Largest difference of a loss, in nats."""
NEAR = 1e-5
"""Largest difference of a logit."""
PISSA = Job(method=Method.LORA, adapter="pissa", steps=10)
OLORA = replace(PISSA, adapter="olora")
PATTERNS = replace(PISSA, adapter="pissa with rslora and patterns")
ENDS = replace(PISSA, adapter="olora and ends")
ALONE = [PISSA, OLORA, PATTERNS, ENDS]
QUANTISED = [replace(PISSA, method=Method.QLORA), replace(OLORA, method=Method.QLORA, format="int8", double=False)]
SHARDED = [PISSA, PATTERNS, *QUANTISED]
SPREAD = [replace(job, engine=engine) for job in SHARDED for engine in (Engine.DDP, Engine.FSDP2)]
HYBRID = [replace(job, engine=Engine.HSDP) for job in (PISSA, QUANTISED[0])]
BF16 = [replace(PISSA, precision=Precision.BF16), replace(OLORA, precision=Precision.BF16)]
SPREAD_BF16 = replace(BF16[0], engine=Engine.FSDP2)
WORLDS = {
    1: [*ALONE, *QUANTISED, *BF16, *(replace(job, plain=True) for job in ALONE)],
    2: [*SPREAD, SPREAD_BF16],
    4: HYBRID,
}
"""Jobs by number of ranks."""
STARTS = [init for init in LoraInit if init not in {LoraInit.DEFAULT, LoraInit.GAUSSIAN}]
INT8 = {"format": "int8", "double": False}
NF4 = {"format": "nf4", "double": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.model_folder(tmp_path_factory.mktemp("base") / "model", layers=2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("inputs")
    models.model_folder(found / "model")
    models.dataset(found / "rows.jsonl")
    return found


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Run]:
    return qlora_work.on_ranks(folder, WORLDS)


def config(inputs: Path, output: Path, *, lora: dict[str, Any], **changes: Any) -> RunConfig:
    common = {"method": "lora", "lora": models.lora(**lora), "checkpointing": {"every_steps": 4, "keep": 9}}
    return models.run_config(inputs / "model", inputs / "rows.jsonl", output, **(common | changes))


def settings(output: Path) -> dict[str, Any]:
    """Content of adapter_config.json."""
    found: dict[str, Any] = json.loads((output / "result" / "adapter_config.json").read_bytes())
    return found


@pytest.mark.parametrize("job", ALONE, ids=str)
def test_layers_of_peft_train_alike(found: dict[str, Run], job: Job) -> None:
    ours, plain = found[str(job)], found[str(replace(job, plain=True))]
    assert len(ours.losses) == 10
    assert far(ours.losses, plain.losses) <= LOSS


def test_each_start_trains_in_its_own_way(found: dict[str, Run]) -> None:
    assert len({tuple(found[str(job)].losses[1:]) for job in (*ALONE, *QUANTISED)}) == len(ALONE) + len(QUANTISED)


@pytest.mark.parametrize("job", [*SPREAD, *HYBRID], ids=str)
def test_every_layout_trains_alike(found: dict[str, Run], job: Job) -> None:
    qlora_work.require_same_as_alone(found, job, LOSS)


@pytest.mark.parametrize("job", [*BF16, SPREAD_BF16], ids=str)
def test_in_bf16_it_trains_as_in_fp32_to_the_roundings(found: dict[str, Run], job: Job) -> None:
    exact = found[str(replace(job, precision=Precision.FP32, engine=Engine.SINGLE))]
    assert far(found[str(job)].losses, exact.losses) <= 0.02


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("init", STARTS)
def test_factors_and_what_they_leave_are_those_of_the_papers(init: LoraInit, transposed: bool) -> None:
    torch.manual_seed(0)
    weight, size = torch.randn(48, 32) @ torch.diag(0.8 ** torch.arange(32)), Size(4, 0.5, 32, 48, transposed)
    stored = weight.t().contiguous() if transposed else weight
    factors = decomposition.factors(stored, init, size, seed=7)
    left = factors.residual(stored, weight.device)
    product = 0.5 * factors.b @ factors.a
    assert torch.allclose((left.t() if transposed else left) + product, weight, atol=1e-6)
    if init is LoraInit.OLORA:
        identity = factors.b.t() @ factors.b
        assert torch.allclose(identity, torch.eye(4), atol=1e-5)
        assert torch.allclose(factors.a, factors.b.t() @ weight, atol=1e-5)
        return
    near = 0.1 if init in {f"pissa_niter_{n}" for n in (1, 2, 4)} else 1e-3
    largest = torch.linalg.svdvals(weight)[:4]
    assert torch.allclose(torch.linalg.svdvals(product)[:4], largest, rtol=near)
    assert torch.allclose((factors.a**2).sum(1), (factors.b**2).sum(0), rtol=1e-4), "both have the same share of S"


def test_random_numbers_of_a_decomposition_are_those_of_the_seed_and_of_no_one_else() -> None:
    torch.manual_seed(0)
    weight, size, before = torch.randn(48, 32), Size(4, 2.0, 32, 48, False), torch.get_rng_state()
    one, same, other = (
        decomposition.factors(weight, LoraInit.PISSA_NITER_1, size, seed=seed).a for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    **{init: ("llama", {"init": init}) for init in ("pissa", "olora", "pissa_niter_4")},
    "rsLoRA and patterns": ("llama", ADAPTERS[PATTERNS.adapter][0]),
    "layers of one name": ("llama", {"init": "olora", "target_modules": ("q_proj",), "alpha": 3.0, "rank": 7}),
    "modules to save": ("llama", ADAPTERS[ENDS.adapter][0]),
    "weights that are stored transposed": ("gpt2", {"init": "pissa"}),
    "OLoRA of such": ("gpt2", {"init": "olora"}),
    "tensors that several layers share": ("phi3", {"init": "pissa"}),
}
"""Architectures, and settings of adapters."""


@pytest.mark.parametrize("case", PUBLISHED)
def test_plain_peft_loads_the_result_onto_the_unchanged_base(tmp_path: Path, case: str) -> None:
    kind, lora = PUBLISHED[case]
    architectures.model(kind).save_pretrained(tmp_path / "model")
    (tmp_path / "output").mkdir()
    wanted = config(tmp_path, tmp_path / "output", lora=lora)
    before, ours, theirs, base = values(run_ranks(1, decomposition_work.published, wanted))[0]
    assert float((before - base).abs().max()) <= NEAR
    assert float((ours - theirs).abs().max()) <= NEAR
    assert float((ours - base).abs().max()) > 100 * NEAR, "the adapter changes nothing"
    found = settings(tmp_path / "output")
    assert (found["init_lora_weights"], found["use_rslora"]) == (True, False)
    assert found["r"] == 2 * wanted.lora.rank  # type: ignore[union-attr]
    assert isinstance(found["lora_alpha"], int)


@pytest.mark.parametrize("how", [NF4, INT8], ids=["nf4", "int8"])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_is_left_of_a_weight_is_what_is_quantised(tmp_path: Path, inputs: Path, init: str, how: Any) -> None:
    wanted = config(inputs, tmp_path / "output", lora={"init": init}, method="qlora", quantisation=how)
    [(computed, initial)] = values(run_ranks(1, decomposition_work.quantised, wanted))
    made: Any = AutoModelForCausalLM
    weights = dict(made.from_pretrained(inputs / "model", dtype=torch.float32).named_parameters())
    assert wanted.quantisation is not None
    for name, factors in initial.items():
        whole = weights[f"{name}.weight"].detach()
        left = (whole.double() - (factors.scaling * factors.b.double()) @ factors.a.double()).float()
        codes, scales = quantised_layer.quantise(left, wanted.quantisation)
        assert torch.equal(
            computed[name], quantised_layer.whole(codes, scales, wanted.quantisation, left.shape, left.dtype)
        )
        assert (computed[name] - left).norm() < (computed[name] - whole).norm() / 2


STOPPED: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "bf16": {"precision": "bf16"},
    "QLoRA": {"method": "qlora", "quantisation": NF4},
}


@pytest.mark.parametrize("case", STOPPED)
def test_a_resume_elsewhere_has_the_factors_of_the_first_start(tmp_path: Path, inputs: Path, case: str) -> None:
    """With others, the adapter of the checkpoint would be trained beside another base."""
    lora = {"init": "pissa_niter_1"}
    both = [config(inputs, tmp_path / name, lora=lora, **STOPPED[case]) for name in ("one", "two")]
    run_ranks(1, trainer_work.run, both[0], tmp_path / "handoff of one")
    values(run_ranks(1, decomposition_work.run_in_two_places, both[1], tmp_path / "handoff of two", 5))
    one, two = ((tmp_path / n / "result" / "adapter_model.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two


def test_a_resume_on_other_ranks_has_the_factors_of_the_first_start(tmp_path: Path, inputs: Path) -> None:
    ranks = {"mesh__processes_per_node": 2, "mesh__data_parallel": 2, "batch": {"per_device": 1, "accumulation": 2}}
    alone = config(inputs, tmp_path / "output", lora={"init": "pissa"})
    sharded = config(inputs, tmp_path / "output", lora={"init": "pissa"}, engine="fsdp2", **ranks)
    uninterrupted = config(inputs, tmp_path / "alone", lora={"init": "pissa"})
    [whole] = values(run_ranks(1, trainer_work.run_on_ranks, uninterrupted))
    stopped = values(run_ranks(2, decomposition_work.run_stopped, sharded, 5))
    assert {report.exit_code for report in stopped} != {0}
    [found] = values(run_ranks(1, trainer_work.run_on_ranks, alone))
    steps = checkpoint._steps(tmp_path / "output")
    first, last = (_initial(tmp_path / "output", step) for step in (min(steps), max(steps)))
    assert first.keys() == last.keys() != set()
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert found.metrics["train.loss"] == pytest.approx(whole.metrics["train.loss"], abs=LOSS)


def _initial(output: Path, step: int) -> dict[str, torch.Tensor]:
    return checkpoint.read_part(output, step, "initial")


@pytest.mark.parametrize("case", ["LoRA", "QLoRA"])
def test_the_merged_model_is_the_base_with_the_adapter(tmp_path: Path, inputs: Path, case: str) -> None:
    wanted = config(inputs, tmp_path / "output", lora={"init": "pissa"}, merge=True, **STOPPED[case])
    values(run_ranks(1, trainer_work.run, wanted, tmp_path / "handoff"))
    made, result = AutoModelForCausalLM, tmp_path / "output" / "result"
    base: Any = made.from_pretrained(inputs / "model", dtype=torch.float32)
    merged: Any = made.from_pretrained(result / "merged", dtype=torch.float32)
    adapted: Any = PeftModel.from_pretrained(base, str(result))
    assert float((result_work.logits(merged) - result_work.logits(adapted)).abs().max()) <= NEAR
    before: Any = made.from_pretrained(inputs / "model", dtype=torch.float32)
    assert float((result_work.logits(merged) - result_work.logits(before)).abs().max()) > 100 * NEAR


def test_the_result_is_trained_further(tmp_path: Path, inputs: Path) -> None:
    rows = {"validation": {"every_steps": 0, "keep_best": False, "metric": "val.loss", "greater_is_better": False},
            "data__validation": str(inputs / "rows.jsonl")}  # fmt: skip
    first = config(inputs, tmp_path / "first", lora={"init": "olora"}, **rows)
    second = config(inputs, tmp_path / "second", lora={"source": str(tmp_path / "first")}, **rows)
    reports = [
        values(run_ranks(1, trainer_work.run, each, tmp_path / f"handoff {number}"))[0]
        for number, each in enumerate((first, second))
    ]
    assert reports[1].metrics["val.loss.initial"] == pytest.approx(reports[0].metrics["val.loss"], rel=1e-6)
    assert [settings(tmp_path / name)["r"] for name in ("first", "second")] == [8, 8]


def test_the_run_asks_its_volume_for_both_factors(tmp_path: Path, inputs: Path) -> None:
    wanted = config(inputs, tmp_path / "output", lora={"init": "pissa", "rank": 64})
    [(asked, grown)] = values(run_ranks(1, trainer_work.run_measured, wanted, tmp_path / "handoff"))
    assert 0.97 < grown / asked < 1.03


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dropout": (
        {"dropout": 0.1},
        "pissa moves the largest part of each weight into its adapter, whose dropout is 0.1 and would drop",
    ),
    "DoRA": ({"dora": True}, "pissa is not trained with use_dora, whose lengths are those of whole rows"),
    "more directions than there are": (
        {"rank_pattern": (("k_proj", 65),)},
        "pissa takes 65 directions out of model.layers.0.self_attn.k_proj, which has 64 inputs or outputs; set ",
    ),
    "a head that is the embedding": (
        {"target_modules": ("lm_head",)},
        "pissa changes the weight of lm_head, which is also that of another module; leave it out of",
    ),
}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_begin_so_is_refused_before_weights_are_read(case: str) -> None:
    changes, message = REFUSED[case]
    with torch.device("meta"):
        base = type(models.llama())(models.llama(tied=True).config)
    with pytest.raises(ModelRefused) as refused:
        adapters.attach(base, Lora(**models.lora(init="pissa", **changes)))
    assert str(refused.value).startswith(f"training.lora.init_lora_weights: {message}")
    adapters.attach(models.llama(tied=True), Lora(**models.lora(init="gaussian", **changes)))


WEIGHTS: dict[str, tuple[float, str]] = {
    "not finite": (torch.nan, "it has numbers that are not finite"),
    "zero": (0.0, "it has only zeros"),
}


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_weight_that_cannot_be_divided_is_refused_on_every_rank(tmp_path: Path, world: int, kind: str) -> None:
    number, message = WEIGHTS[kind]
    path = models.model_folder(tmp_path / "model") / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.self_attn.q_proj.weight"][:] = number
    save_file(tensors, path, {"format": "pt"})
    models.dataset(tmp_path / "rows.jsonl")
    ranks = {"mesh__processes_per_node": 2, "mesh__data_parallel": 2, "engine": "ddp"} if world == 2 else {}
    wanted = config(tmp_path, tmp_path / "output", lora={"init": "pissa"}, **ranks)
    for ended in run_ranks(world, trainer_work.run_on_ranks, wanted):
        assert isinstance(ended.error, ModelRefused)
        named = "model.layers.1.self_attn.q_proj.weight of job.model cannot be decomposed"
        assert f"{named}: {message}; leave it out of" in str(ended.error)


@pytest.mark.parametrize("shape", [(48, 40), (6, 40), (48, 5)], ids=str)
def test_published_factors_are_as_large_as_their_product(shape: tuple[int, int]) -> None:
    """Of [B, -B₀] and [A; A₀], large and nearly alike, bf16 leaves their roundings."""
    outputs, inputs = shape
    torch.manual_seed(0)
    a, b = torch.randn(4, inputs), torch.randn(outputs, 4)
    joined_a, joined_b = torch.cat([a + 1e-3 * torch.randn_like(a), a]), torch.cat([b, -b], 1)
    exact = joined_b.double() @ joined_a.double()
    small_a, small_b = decomposition._balanced(joined_a, joined_b)
    assert (small_a.shape, small_b.shape) == (joined_a.shape, joined_b.shape)
    assert float((small_b.double() @ small_a.double() - exact).norm()) <= 1e-5 * float(exact.norm())
    rounded = small_b.bfloat16().double() @ small_a.bfloat16().double()
    assert float((rounded - exact).norm()) <= 1e-2 * float(exact.norm())
