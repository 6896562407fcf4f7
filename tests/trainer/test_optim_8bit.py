"""AdamW with moments in eight bits: the published algorithm, in few bytes, on any number of ranks."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import bitsandbytes
import pytest
import torch
from torch import Tensor, nn

from finetune_api.runtime.run_config import Optimizer
from finetune_trainer import activations, adamw_8bit, blockwise, four_bits, identity, mesh, optim
from finetune_trainer.adamw import AdamW
from finetune_trainer.adamw_8bit import AdamW8bit
from finetune_trainer.blockwise import BLOCK, Codebook
from finetune_trainer.environment import RankInfo
from finetune_trainer.errors import OutputRefused, Unsupported
from trainer import models
from trainer import trainer_work as work
from trainer.ranks import run_ranks

CPU = torch.device("cpu")
EIGHT_BITS: dict[str, Any] = {"optimizer__name": "adamw_8bit"}
RATE = 1e-3
KINDS = {"exp_avg": True, "exp_avg_sq": False}
"""Of moments, and whether they have a sign."""
SHAPES = {
    "rows of whole blocks": (40, 512), "rows that end in a block": (37, 300), "a block of several rows": (130, 96),
    "odd rows": (61, 77), "a vector": (5000,), "three dimensions": (70, 3, 40), "small": (63, 65), "a bias": (300,),
}  # fmt: skip
"""Of weights of one model."""
QUANTISED = SHAPES.keys() - {"small", "a bias"}


def settings(**changes: float) -> Optimizer:
    config = models.run_config(Path("model"), Path("data"), Path("output"), **EIGHT_BITS)
    return config.optimizer.model_copy(update={"weight_decay": 0.1, **changes})


def weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def gradients(seed: int) -> dict[str, Tensor]:
    """Of magnitudes that differ from row to row by up to a thousand, and within a row by more."""
    generator = torch.Generator().manual_seed(1000 + seed)
    found = {}
    for name, shape in SHAPES.items():
        scale = 10 ** (-3 * torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator))
        found[name] = torch.randn(shape, generator=generator) * torch.rand(shape, generator=generator) ** 4 * scale
    return found


def build(local: Mapping[str, Tensor], **changes: float) -> AdamW8bit:
    return AdamW8bit(local, QUANTISED, settings(**changes))


def step(
    optimizer: optim.LocalOptimizer, own: dict[str, Tensor], seed: int, *, skip: bool = False, rows: Any = slice(None)
) -> None:
    given = {name: gradient[rows[name]] if rows != slice(None) else gradient
             for name, gradient in gradients(seed).items()}  # fmt: skip
    if skip:
        given = {name: gradient * torch.nan for name, gradient in given.items()}
    optimizer.step(own, given, RATE, torch.tensor(1.0), torch.tensor(float(skip)))


def bits(optimizer: optim.LocalOptimizer) -> dict[str, Tensor]:
    """A copy of the state, by kind and name."""
    return {f"{kind}/{name}": tensor.clone()
            for kind, tensors in optimizer.state().items() for name, tensor in tensors.items()}  # fmt: skip


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def table_of(signed: bool) -> Tensor:
    """fp32 [256], as bitsandbytes makes it."""
    found: Tensor = cast("Any", bitsandbytes.functional).create_dynamic_map(signed=signed)
    return found


# The format


@pytest.mark.parametrize("signed", [True, False])
def test_a_number_becomes_the_nearest_of_bitsandbytes_numbers_times_the_largest_of_its_block(signed: bool) -> None:
    table = table_of(signed)
    exact = torch.randn(64 * BLOCK) * 10 ** (-8 * torch.rand(64 * BLOCK))
    exact = exact if signed else exact.abs()
    exact[:BLOCK] = 0
    exact[BLOCK] *= 1e6
    codes, scales = Codebook(CPU, signed=signed).quantise(exact)
    assert torch.equal(scales, exact.view(-1, BLOCK).abs().amax(1))
    shares = exact.view(-1, BLOCK)[1:] / scales[1:, None]
    nearest = (shares.unsqueeze(-1) - table).abs().amin(-1)
    off = (table[codes.view(-1, BLOCK)[1:].long()] - shares).abs()
    assert float((off - nearest).max()) <= 1e-9
    found = Codebook(CPU, signed=signed).dequantise(codes, scales).view(-1, BLOCK)
    assert torch.equal(found[0], torch.zeros(BLOCK))
    assert torch.equal(found[1:], table[codes.view(-1, BLOCK)[1:].long()] * scales[1:, None])


def test_the_kernel_of_bitsandbytes_for_cpus_does_not_find_the_nearest() -> None:
    """Why ours is used there: a zero beside a one comes back as 2e-5."""
    table = table_of(True)
    exact = torch.zeros(BLOCK)
    exact[0] = 1
    codes, scales = torch.ops.bitsandbytes.quantize_blockwise(exact, table, BLOCK)
    assert float(table[codes[1].long()]) > 1e-5
    codes, scales = Codebook(CPU, signed=True).quantise(exact)
    assert float(Codebook(CPU, signed=True).dequantise(codes, scales)[1]) == 0


# The algorithm


def published(shape: tuple[int, ...], start: Tensor, steps: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Weights and moments of each step by the formulas of the papers, in fp64, element by element.

    Dettmers et al. 2022 and Loshchilov and Hutter 2019; only the second moment's least code is 1 and not 0.
    """
    own = settings()
    tables = {kind: table_of(signed).double()
              for kind, signed in KINDS.items()}  # fmt: skip
    weight, moments = start.double(), {kind: torch.zeros(start.numel(), dtype=torch.float64) for kind in KINDS}
    for n in range(1, steps + 1):
        name = next(name for name, each in SHAPES.items() if each == shape)
        gradient = gradients(n)[name].double()
        first = own.beta1 * moments["exp_avg"] + (1 - own.beta1) * gradient.view(-1)
        second = own.beta2 * moments["exp_avg_sq"] + (1 - own.beta2) * gradient.view(-1).square()
        change = (first / (1 - own.beta1**n)) / ((second / (1 - own.beta2**n)).sqrt() + own.epsilon)
        decay = own.weight_decay if len(shape) > 1 else 0.0
        weight = weight * (1 - RATE * decay) - RATE * change.view(shape)
        for kind, exact in (("exp_avg", first), ("exp_avg_sq", second)):
            moments[kind] = torch.cat([_kept(block, tables[kind], kind) for block in torch.split(exact, BLOCK)])
        yield weight, {kind: moment.view(shape) for kind, moment in moments.items()}


def _kept(block: Tensor, table: Tensor, kind: str) -> Tensor:
    largest = block.abs().max()
    codes = (block.unsqueeze(1) / largest - table).abs().argmin(1)
    return table[codes.clamp(min=0 if KINDS[kind] else 1)] * largest


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in {"small", "a bias"}])
def test_twenty_steps_are_those_of_the_published_algorithm(name: str) -> None:
    """A few codes in a thousand are the neighbours of those in fp64: numbers between two are not the same in fp32."""
    own = weights()
    optimizer, start = build(own), own[name].clone()
    weight = start
    for n, (weight, moments) in enumerate(published(SHAPES[name], start, 20), start=1):  # noqa: B007
        step(optimizer, own, n)
        found = exact(optimizer)
        for kind in KINDS:
            differs = (found[kind][name] - moments[kind]).abs() > 1e-5 * moments[kind].abs()
            assert float(differs.float().mean()) <= 0.005, (n, kind)
    assert float((own[name] - weight).norm() / (weight - start).norm()) <= 1e-3


def exact(optimizer: AdamW8bit) -> dict[str, dict[str, Tensor]]:
    """The moments in fp32, from what a checkpoint would have, by kind and name."""
    state = optimizer.state()
    found: dict[str, dict[str, Tensor]] = {}
    for kind, signed in KINDS.items():
        table = table_of(signed)
        found[kind] = {}
        for name, codes in state[kind].items():
            if name not in state[f"{kind}_scales"]:
                found[kind][name] = codes
                continue
            scales = state[f"{kind}_scales"][name]
            piece = torch.Size(codes.shape[1:]).numel() // scales.shape[1]
            found[kind][name] = table[codes.long()] * scales.repeat_interleave(piece, dim=1).view(codes.shape)
    return found


def test_bitsandbytes_own_optimizer_trains_alike() -> None:
    """Beside AdamW in fp32, its weights are a few times as far away as ours from ours to its."""
    start = torch.randn(64, 512, generator=torch.Generator().manual_seed(3))
    theirs = nn.Parameter(start.clone())
    stock = cast("Any", bitsandbytes.optim).AdamW8bit([theirs], lr=RATE, weight_decay=0.1)
    ours = {"w": start.clone()}
    optimizer = AdamW8bit(ours, {"w"}, settings())
    for n in range(20):
        gradient = torch.randn(64, 512, generator=torch.Generator().manual_seed(n)) + 0.3
        theirs.grad = gradient
        stock.step()
        optimizer.step(ours, {"w": gradient}, RATE, torch.tensor(1.0), torch.tensor(0.0))
    assert float((ours["w"] - theirs.detach()).norm() / (ours["w"] - start).norm()) <= 0.02


def test_small_weights_have_the_bits_of_adamw_in_fp32() -> None:
    ours, plain = weights(), weights()
    optimizers = build(ours), AdamW(plain, settings())
    for n in range(3):
        step(optimizers[0], ours, n)
        step(optimizers[1], plain, n)
    alike = {name for name in SHAPES if torch.equal(ours[name], plain[name])}
    assert alike == {"small", "a bias"}


def test_weights_that_come_one_by_one_get_the_bits_of_weights_that_come_together() -> None:
    """As those that are kept in bf16 do."""
    together, alone = weights(), weights()
    optimizers = build(together), build(alone)
    for n in range(2):
        step(optimizers[0], together, n)
        for name in SHAPES:
            step(optimizers[1], {name: alone[name]}, n)
    assert same(together, alone)
    assert same(bits(optimizers[0]), bits(optimizers[1]))


def test_how_many_elements_are_updated_at_a_time_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(adamw_8bit._GROUP, "cpu", 1024)
    parts, whole = weights(), weights()
    optimizers = [build(parts)]
    monkeypatch.undo()
    optimizers.append(build(whole))
    assert max(map(len, optimizers[0]._groups(SHAPES))) < max(map(len, optimizers[1]._groups(SHAPES)))
    for n in range(3):
        step(optimizers[0], parts, n)
        step(optimizers[1], whole, n)
    assert same(parts, whole)
    assert same(bits(optimizers[0]), bits(optimizers[1]))


def test_a_skipped_step_leaves_all_bits_as_they_were() -> None:
    """To quantise what was dequantised may change bits: the largest number of a block may be negative."""
    own = weights()
    optimizer = build(own)
    for n in range(3):
        step(optimizer, own, n)
    before = copy.deepcopy(own), bits(optimizer)
    largest = [each for each in before[1] if each.startswith("exp_avg/") and (before[1][each] == 0).any()]
    assert largest, "or nothing is tried"
    step(optimizer, own, 3, skip=True)
    assert same(own, before[0])
    assert same(bits(optimizer), before[1])
    other = weights()
    without = build(other)
    for n in (0, 1, 2, 4):
        step(without, other, n)
    step(optimizer, own, 4)
    assert same(own, other)
    assert same(bits(optimizer), bits(without))


def test_an_element_that_is_rarely_used_gets_no_update_larger_than_its_neighbours() -> None:
    """A second moment that was rounded to 0 would divide by epsilon."""
    own = {"w": torch.zeros(16, 256)}
    optimizer = AdamW8bit(own, {"w"}, settings(weight_decay=0.0))
    once = torch.ones(16, 256)
    once[:, 0] = 3e-4
    never = torch.ones(16, 256)
    never[:, 0] = 0.0
    for gradient in (once, *[never] * 5):
        optimizer.step(own, {"w": gradient}, RATE, torch.tensor(1.0), torch.tensor(0.0))
    assert float(own["w"][:, 0].abs().max()) <= float(own["w"][:, 1].abs().max())


# Bytes


def test_the_moments_take_two_bytes_of_a_large_weight_and_eight_of_a_small_one() -> None:
    own = weights()
    optimizer = build(own)
    step(optimizer, own, 0)
    small = sum(own[name].numel() for name in ("small", "a bias"))
    large = sum(weight.numel() for weight in own.values()) - small
    held = sum(m.codes.nbytes + m.scales.nbytes for m in optimizer._moments.values())
    held += sum(m.nbytes for kind in optimizer._others.state().values() for m in kind.values())
    assert held <= 2.1 * large + 8 * small
    expected = 8 * small + sum(adamw_8bit.moment_bytes(own[name].numel()) for name in QUANTISED)
    assert expected <= held <= expected + len(own) * BLOCK * 2, "what estimates reckon with"


@pytest.mark.parametrize("tied", [True, False])
def test_moments_of_embeddings_and_of_what_is_no_large_matrix_stay_in_fp32(tied: bool) -> None:
    model = models.llama(tied=tied)
    model.model.norm = nn.RMSNorm(8192)
    found = optim.in_eight_bits(model, settings())
    others = {name for name, p in model.named_parameters() if name not in found}
    norms = {name for name, p in model.named_parameters() if p.ndim == 1}
    assert others == {"model.embed_tokens.weight", *norms}
    assert ("lm_head.weight" in found) == (not tied)
    assert not optim.in_eight_bits(model, settings().model_copy(update={"name": "adamw"}))


def test_an_estimate_of_memory_reckons_with_eight_bits(tmp_path: Path) -> None:
    models.llama().save_pretrained(tmp_path)
    found = {}
    for name in ("adamw", "adamw_8bit"):
        config = models.run_config(tmp_path, tmp_path, tmp_path, optimizer__name=name)
        outline = activations.outlined(tmp_path, config)
        layout = mesh.build(config, RankInfo(0, 1, 0, CPU))
        found[name] = activations.fixed(outline, config, layout, 100)
    large = sum(p.numel() for name, p in outline.named_parameters() if adamw_8bit.suits(p) and "embed" not in name)
    saved = found["adamw"].weights - found["adamw_8bit"].weights
    assert 5.9 * large <= saved <= 6 * large
    assert (found["adamw"].update, found["adamw_8bit"].update) == (0, adamw_8bit.STEP_BYTES)


# Checkpoints, without ranks: shards are rows


def shards(whole: Mapping[str, Tensor], ranks: int) -> list[dict[str, Tensor]]:
    """As fully_shard cuts them; the last ones may be empty."""
    found: list[dict[str, Tensor]] = [{} for _ in range(ranks)]
    for name, tensor in whole.items():
        length = -(-len(tensor) // ranks)
        for rank in range(ranks):
            found[rank][name] = tensor[rank * length : (rank + 1) * length].clone()
    return found


def trained_on(ranks: int, steps: int = 4) -> tuple[list[AdamW8bit], list[dict[str, Tensor]]]:
    own = shards(weights(), ranks)
    optimizers = [build(each) for each in own]
    for n in range(steps):
        for rank in range(ranks):
            given = shards(gradients(n), ranks)[rank]
            optimizers[rank].step(own[rank], given, RATE, torch.tensor(1.0), torch.tensor(0.0))
    return optimizers, own


def whole(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def gathered(optimizers: list[AdamW8bit]) -> dict[str, dict[str, Tensor]]:
    states = [optimizer.state() for optimizer in optimizers]
    return {kind: whole([state[kind] for state in states]) for kind in states[0]}


def loaded_on(ranks: int, saved: dict[str, dict[str, Tensor]], own: dict[str, Tensor], steps: int) -> list[AdamW8bit]:
    found = []
    for rank in range(ranks):
        optimizer = build(shards(own, ranks)[rank])
        state = optimizer.state()
        for kind, tensors in saved.items():
            for name, tensor in shards(tensors, ranks)[rank].items():
                assert state[kind][name].shape == tensor.shape
                state[kind][name].copy_(tensor)
        optimizer.resumed(steps)
        found.append(optimizer)
    return found


@pytest.mark.parametrize("ranks", [1, 3])
def test_resumed_on_the_same_ranks_a_step_has_the_bits_that_it_would_have_had(ranks: int) -> None:
    optimizers, own = trained_on(ranks)
    resumed = loaded_on(ranks, gathered(optimizers), whole(own), 4)
    other = shards(whole(own), ranks)
    for rank in range(ranks):
        given = shards(gradients(9), ranks)[rank]
        for optimizer, weight in ((optimizers[rank], own[rank]), (resumed[rank], other[rank])):
            optimizer.step(weight, given, RATE, torch.tensor(1.0), torch.tensor(0.0))
        assert same(own[rank], other[rank])
        assert same(bits(optimizers[rank]), bits(resumed[rank]))


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2), (1, 8), (8, 3), (70, 1)])
def test_resumed_on_other_ranks_moments_are_within_a_step_of_the_format(before: int, after: int) -> None:
    optimizers, own = trained_on(before)
    saved = gathered(optimizers)
    resumed = loaded_on(after, saved, whole(own), 4)
    states = [exact(optimizer) for optimizer in optimizers]
    others = [exact(optimizer) for optimizer in resumed]
    for kind, signed in KINDS.items():
        table = table_of(signed)
        was, now = (whole([each[kind] for each in found]) for found in (states, others))
        for name in SHAPES:
            if name in {"small", "a bias", "rows of whole blocks"}:
                assert torch.equal(was[name], now[name]), "no block is cut"
                continue
            scales = gathered(resumed)[f"{kind}_scales"][name]
            share = was[name].reshape(*scales.shape, -1) / scales.clamp(min=1e-30).unsqueeze(-1)
            at = torch.bucketize(share, table).clamp(1, 255)
            allowed = (table[at] - table[at - 1]) * scales.unsqueeze(-1) * 1.0001
            assert bool(((was[name] - now[name]).abs().view(allowed.shape) <= allowed).all()), (kind, name)


# Refusals


def test_a_run_with_moments_of_another_format_is_another_run(tmp_path: Path) -> None:
    documents = [
        identity.document(models.run_config(Path("m"), Path("d"), Path("o"), optimizer__name=name), {}, 4)
        for name in ("adamw", "adamw_8bit")
    ]
    identity.claim(tmp_path, documents[0])
    with pytest.raises(OutputRefused, match=r'hyperparameters\.optim was "adamw" and is "adamw_8bit" now'):
        identity.claim(tmp_path, documents[1])


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    blockwise.require(CPU)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    four_bits.library.cache_clear()
    try:
        with pytest.raises(Unsupported, match=r"adamw_8bit needs bitsandbytes, .* on cpu here: .*extra trainer"):
            blockwise.require(CPU)
    finally:
        four_bits.library.cache_clear()


def test_bitsandbytes_is_tried_before_weights_are_loaded(tmp_path: Path) -> None:
    model = models.model_folder(tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"no weights")
    config = models.run_config(model, models.dataset(tmp_path / "rows"), tmp_path / "out", **EIGHT_BITS)
    [ended] = run_ranks(1, work.run_without_bitsandbytes, config, tmp_path / "handoff")
    assert isinstance(ended.error, Unsupported), ended.error
    assert "adamw_8bit" in str(ended.error)
