"""DeepSpeed's ZeRO is the same job, its checkpoints are those of every engine, and it never trains on noise."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from finetune_api.runtime.choices import Engine
from finetune_trainer.engines import zero_settings
from trainer import models, zero_work
from trainer.parity_cases import ParityCase, Trace
from trainer.ranks import run_ranks, values
from trainer.resume_layouts_work import PLANNED_STEPS, Part, ResumeCase, parts
from trainer.test_bf16 import differences as differences_in_bf16
from trainer.test_parity import differences

GOLDEN = Path(__file__).parent / "zero_settings.json"
STAGES = (Engine.ZERO1, Engine.ZERO2, Engine.ZERO3)
OPTIMIZER, PARAMETERS, BOTH = ("optimizer",), ("parameters",), ("optimizer", "parameters")
"""What is in the memory of the host."""
CASES = {
    # With two micro batches, but where it says otherwise. After 12 steps with four, the losses of DDP and FSDP2 are
    # 3e-5 apart too: the job then makes differences in the last bits larger.
    "ZeRO-1, tied": ParityCase(Engine.ZERO1, tied=True, lora=False),
    "ZeRO-1, LoRA": ParityCase(Engine.ZERO1, tied=False, lora=True),
    "ZeRO-2, one micro batch": ParityCase(Engine.ZERO2, tied=False, lora=False, per_device=2),
    "ZeRO-2, four micro batches": ParityCase(Engine.ZERO2, tied=False, lora=False, rows=8),
    "ZeRO-2, LoRA": ParityCase(Engine.ZERO2, tied=True, lora=True),
    "ZeRO-3, one micro batch": ParityCase(Engine.ZERO3, tied=True, lora=False, per_device=2),
    "ZeRO-3, four micro batches": ParityCase(Engine.ZERO3, tied=False, lora=False, rows=8, steps=12),
    "ZeRO-3, LoRA": ParityCase(Engine.ZERO3, tied=False, lora=True),
    "ZeRO-1 that offloads, LoRA": ParityCase(Engine.ZERO1, tied=False, lora=True, steps=6, offload=OPTIMIZER),
    "ZeRO-2 that offloads": ParityCase(Engine.ZERO2, tied=False, lora=False, rows=8, steps=6, offload=OPTIMIZER),
    "ZeRO-3 that offloads, tied": ParityCase(Engine.ZERO3, tied=True, lora=False, steps=6, offload=BOTH),
    "ZeRO-3 that offloads weights, LoRA": ParityCase(
        Engine.ZERO3, tied=False, lora=True, steps=6, offload=PARAMETERS
    ),
}
ON_FOUR = {
    "ZeRO-2, LoRA": ParityCase(Engine.ZERO2, tied=False, lora=True, steps=12),
    "ZeRO-3, four micro batches": ParityCase(Engine.ZERO3, tied=True, lora=False, rows=16, steps=6),
}
"""Cases of four ranks."""
BF16 = {
    f"{case.engine} {case.job}{' that offloads' * bool(case.offload)}": replace(
        case, precision="bf16", per_device=1, rounding="nearest"
    )
    for case in (
        ParityCase(Engine.ZERO1, tied=False, lora=False),
        ParityCase(Engine.ZERO1, tied=True, lora=True),
        ParityCase(Engine.ZERO2, tied=True, lora=False),
        ParityCase(Engine.ZERO2, tied=False, lora=True),
        ParityCase(Engine.ZERO3, tied=False, lora=False),
        ParityCase(Engine.ZERO3, tied=True, lora=True),
        ParityCase(Engine.ZERO1, tied=False, lora=False, offload=OPTIMIZER),
        ParityCase(Engine.ZERO2, tied=False, lora=True, offload=OPTIMIZER),
        ParityCase(Engine.ZERO3, tied=False, lora=False, offload=BOTH),
    )
}
UNSYNCED = {
    f"{stage} without gradient sync": ParityCase(stage, tied=True, lora=False, synced=False, steps=3)
    for stage in STAGES
}
ALL = CASES | BF16 | UNSYNCED


def _alone(case: ParityCase) -> ParityCase:
    per_device = 1 if case.precision == "bf16" else None
    return replace(case, engine=Engine.SINGLE, synced=True, steps=20, per_device=per_device, offload=())


@pytest.fixture(scope="module")
def alone() -> dict[ParityCase, Trace]:
    wanted = {
        str(number): case for number, case in enumerate({_alone(c) for c in (*ALL.values(), *ON_FOUR.values())})
    }
    found: dict[str, Trace] = values(run_ranks(1, zero_work.traces, wanted))[0]
    return {wanted[number]: trace for number, trace in found.items()}


@pytest.fixture(scope="module")
def two_ranks() -> dict[str, Trace]:
    first, second = values(run_ranks(2, zero_work.traces, ALL))
    assert all(first[name].losses == second[name].losses for name in first), "ranks report different losses"
    return dict(first)


@pytest.fixture(scope="module")
def four_ranks() -> dict[str, Trace]:
    return dict(values(run_ranks(4, zero_work.traces, ON_FOUR))[0])


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_like_one_process(
    name: str, alone: dict[ParityCase, Trace], two_ranks: dict[str, Trace]
) -> None:
    assert len(two_ranks[name].losses) == CASES[name].steps
    assert differences(alone[_alone(CASES[name])], two_ranks[name]) == []


@pytest.mark.parametrize("name", ON_FOUR)
def test_four_ranks_do_too(name: str, alone: dict[ParityCase, Trace], four_ranks: dict[str, Trace]) -> None:
    assert len(four_ranks[name].losses) == ON_FOUR[name].steps
    assert differences(alone[_alone(ON_FOUR[name])], four_ranks[name]) == []


@pytest.mark.parametrize("name", BF16)
def test_in_bf16_the_same_micro_batches_give_the_same_numbers(
    name: str, alone: dict[ParityCase, Trace], two_ranks: dict[str, Trace]
) -> None:
    one, many = alone[_alone(BF16[name])], two_ranks[name]
    assert one.losses[0] == many.losses[0]
    assert differences_in_bf16(BF16[name], one, many) == []


@pytest.mark.parametrize("name", UNSYNCED)
def test_ranks_that_keep_their_gradients_are_found_out(
    name: str, alone: dict[ParityCase, Trace], two_ranks: dict[str, Trace]
) -> None:
    found = differences(alone[_alone(UNSYNCED[name])], two_ranks[name])
    assert [kind for kind in ("loss", "norm", "gradient") if not any(line.startswith(kind) for line in found)] == []


ONE = {
    "ZeRO-2": ParityCase(Engine.ZERO2, tied=False, lora=False, offload=OPTIMIZER, steps=5),
    "ZeRO-3": ParityCase(Engine.ZERO3, tied=False, lora=False, offload=BOTH, steps=5),
}


def test_one_rank_offloads_too(alone: dict[ParityCase, Trace]) -> None:
    found = values(run_ranks(1, zero_work.traces, ONE))[0]
    assert {name: differences(alone[_alone(case)], found[name]) for name, case in ONE.items()} == {
        name: [] for name in ONE
    }


def test_offload_changes_no_gradient(two_ranks: dict[str, Trace], alone: dict[ParityCase, Trace]) -> None:
    """Not in any bit: only the norm is of sums in another order."""
    for name, case in BF16.items():
        if case.offload:
            gradients = two_ranks[name].gradients
            same = two_ranks[f"{case.engine} {case.job}"].gradients
            assert [each for each in same if not torch.equal(same[each], gradients[each])] == [], name


RESUMED = [
    ResumeCase(Engine.ZERO1, precision="bf16"),
    ResumeCase(Engine.ZERO2),
    ResumeCase(Engine.ZERO2, lora=True, precision="bf16"),
    ResumeCase(Engine.ZERO3, precision="bf16"),
    ResumeCase(Engine.ZERO3, lora=True),
    ResumeCase(Engine.ZERO2, lora=True, precision="bf16", offload=OPTIMIZER),
    ResumeCase(Engine.ZERO3, precision="bf16", offload=BOTH),
]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Part]]:
    """A run without interruption, and the two parts of one with."""
    folder, cases = tmp_path_factory.mktemp("resumed"), {str(case): case for case in RESUMED}
    return [
        values(run_ranks(2, parts, cases, folder / name, until))[0]
        for name, until in (("whole", 4), ("parts", 2), ("parts", 4))
    ]


@pytest.mark.parametrize("name", [str(case) for case in RESUMED])
def test_a_resumed_run_has_the_bits_of_the_uninterrupted_one(name: str, resumed: list[dict[str, Part]]) -> None:
    whole, first, second = (each[name] for each in resumed)
    assert second.began_with == first.ended_with
    assert len(first.losses) == len(second.losses) == 2
    assert first.losses + second.losses == whole.losses
    assert second.ended_with == whole.ended_with


ALONE: tuple[Engine, tuple[str, ...]] = (Engine.SINGLE, ())
CHAINS = {
    "ZeRO-3, ZeRO-2, FSDP2, one process": ((Engine.ZERO3, ()), (Engine.ZERO2, ()), (Engine.FSDP2, ()), ALONE),
    "DDP, ZeRO-1, ZeRO-3, one process": ((Engine.DDP, ()), (Engine.ZERO1, ()), (Engine.ZERO3, ()), ALONE),
    "ZeRO-3 with offload, ZeRO-3 and ZeRO-1 without, with it on one": (
        (Engine.ZERO3, BOTH), (Engine.ZERO3, ()), (Engine.ZERO1, ()), (Engine.ZERO2, OPTIMIZER)),
    "ZeRO-1 without offload, ZeRO-1, 2 and 3 with it": (
        (Engine.ZERO1, ()), (Engine.ZERO1, OPTIMIZER), (Engine.ZERO2, OPTIMIZER), (Engine.ZERO3, PARAMETERS)),
}  # fmt: skip
"""Engine and offload of each part."""
WORLDS, DONE = (4, 2, 2, 1), (1, 3, 4, PLANNED_STEPS)
"""Ranks of each part, and the steps that are done at its end."""


@pytest.fixture(scope="module")
def chained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Part]]:
    folder = tmp_path_factory.mktemp("chains")
    found = []
    for at, (world, done) in enumerate(zip(WORLDS, DONE, strict=True)):
        chains = {name: chain[at] for name, chain in CHAINS.items()}
        cases = {name: ResumeCase(engine, dropout=0.0, offload=off) for name, (engine, off) in chains.items()}
        found.append(values(run_ranks(world, parts, cases, folder, done))[0])
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Part:
    cases = {"": ResumeCase(Engine.SINGLE, dropout=0.0)}
    found: dict[str, Part] = values(run_ranks(1, parts, cases, tmp_path_factory.mktemp("alone"), PLANNED_STEPS))[0]
    return found[""]


@pytest.mark.parametrize("name", CHAINS)
def test_checkpoints_go_from_one_engine_to_another(
    name: str, chained: list[dict[str, Part]], uninterrupted: Part
) -> None:
    each = [part[name] for part in chained]
    assert [later.began_with for later in each[1:]] == [earlier.ended_with for earlier in each[:-1]]
    assert [len(part.losses) for part in each] == [1, 2, 1, 2]
    losses = [loss for part in each for loss in part.losses]
    assert losses == pytest.approx(uninterrupted.losses, rel=1e-5)


NEAREST: dict[str, Any] = {"precision": "bf16", "rounding": "nearest"}
OFFLOADS: dict[str, Any] = {"offload": {"optimizer": True}}


def _config(tmp_path: Path, engine: Engine, world: int = 2, **changes: Any) -> Any:
    return models.run_config(
        tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "out", engine=engine, mesh__data_parallel=world,
        mesh__processes_per_node=world, batch={"per_device": 1, "accumulation": 1}, **changes,
    )  # fmt: skip


def test_training_begins_with_the_weights_of_the_files(tmp_path: Path) -> None:
    folder = models.model_folder(tmp_path / "model", vocabulary=1021)  # rows that three ranks cannot share evenly
    files = safetensors.torch.load_file(folder / "model.safetensors")
    elements = sum(tensor.numel() for tensor in files.values())
    formats = {"": NEAREST, " that offloads": NEAREST | OFFLOADS}
    configs = {
        f"{stage}{which}": _config(tmp_path, stage, 3, **how)
        for stage in (Engine.ZERO2, Engine.ZERO3) for which, how in formats.items()
    }  # fmt: skip
    for of_rank in values(run_ranks(3, zero_work.loaded, folder, configs)):
        for weights, _, _ in of_rank.values():
            assert weights.keys() == files.keys()
            assert [name for name in files if not torch.equal(files[name], weights[name])] == []
        _, kept, between = of_rank[Engine.ZERO3]
        assert kept < 0.4 * elements
        assert between < 0.01 * elements, "no weights but norms are whole between two steps"


FORMATS: dict[str, dict[str, Any]] = {
    "fp32": {}, "bf16": NEAREST, "bf16 with offload": NEAREST | OFFLOADS,
}  # fmt: skip


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank found, by engine and by what was not finite."""
    folder = tmp_path_factory.mktemp("spoiled")
    models.model_folder(folder / "model", layers=2)
    configs = {f"{stage} {name}": _config(folder, stage, **how) for stage in STAGES for name, how in FORMATS.items()}
    return values(run_ranks(2, zero_work.spoiled, configs, folder / "model"))


@pytest.mark.parametrize("what", zero_work.SPOILED)
@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("engine", STAGES)
def test_numbers_that_are_not_finite_change_nothing(
    engine: Engine, precision: str, what: str, spoiled: list[dict[str, Any]]
) -> None:
    for of_rank in spoiled:
        outcome, same = of_rank[f"{engine} {precision} {what}"]
        assert outcome.skipped
        assert math.isfinite(outcome.nll) == (what == "gradients only")
        assert same


SIZES: dict[str, dict[str, int]] = {
    "zero1": {"reduce_bucket": 1000, "allgather_bucket": 2000},
    "zero2": {"reduce_bucket": 1000, "allgather_bucket": 2000},
    "zero3": {"max_live_parameters": 0, "max_reuse_distance": 0, "sub_group": 0},
    "zero3 in small parts": {"reduce_bucket": 1000, "prefetch_bucket": 0, "persistence_threshold": 0},
}


def test_the_sizes_of_a_job_change_no_bit(tmp_path: Path) -> None:
    folder = models.model_folder(tmp_path / "model", layers=2)
    configs = {
        f"{name}{' by default' * (not sizes)}": _config(tmp_path, Engine(name.split()[0]), zero=sizes or None)
        for name, given in SIZES.items() for sizes in (given, {})
    }  # fmt: skip
    for found in values(run_ranks(2, zero_work.stepped, configs, folder)):
        for name in SIZES:
            for weight, value in found[name].items():
                assert torch.equal(value, found[f"{name} by default"][weight]), (name, weight)


def test_what_a_checkpoint_gets_is_not_changed_by_the_next_step(tmp_path: Path) -> None:
    """Though it is not copied once more."""
    folder = models.model_folder(tmp_path / "model", layers=2)
    configs = {
        "zero1": _config(tmp_path, Engine.ZERO1), "zero2": _config(tmp_path, Engine.ZERO2, **OFFLOADS),
        "zero3": _config(tmp_path, Engine.ZERO3, offload={"optimizer": True, "parameters": True}),
    }  # fmt: skip
    for found in values(run_ranks(2, zero_work.kept, configs, folder)):
        assert found == dict.fromkeys(configs, (True, True))


def test_a_weight_that_not_every_micro_batch_uses_is_named(tmp_path: Path) -> None:
    folder = models.model_folder(tmp_path / "model")
    configs = {stage: _config(tmp_path, stage) for stage in STAGES}
    for of_rank in values(run_ranks(2, zero_work.skipping, configs, folder)):
        for said in of_rank.values():
            assert said.startswith("model.layers.*.mlp.down_proj, model.layers.*.mlp.gate_proj, ")
            assert "not every micro batch uses these weights" in said
            assert said.endswith("set use_deepspeed to false and fsdp to true")


SETTINGS: dict[str, dict[str, Any]] = {
    "ZeRO-1 on CPUs": {"engine": "zero1"},
    "ZeRO-1 on GPUs": {"engine": "zero1", "device": "cuda"},
    "ZeRO-2 on GPUs in bf16": {"engine": "zero2", "device": "cuda", "precision": "bf16"},
    "ZeRO-3 without clipping": {"engine": "zero3", "device": "cuda", "optimizer__max_grad_norm": 0.0},
    "ZeRO-2 with sizes": {"engine": "zero2", "device": "cuda", "zero": {"reduce_bucket": 7, "allgather_bucket": 8}},
    "ZeRO-2 with offload": {"engine": "zero2", "device": "cuda", "offload": {"optimizer": True}},
    "ZeRO-3 with offload": {
        "engine": "zero3",
        "device": "cuda",
        "precision": "bf16",
        "offload": {"optimizer": True, "parameters": True},
    },
    "ZeRO-3 with sizes": {
        "engine": "zero3",
        "device": "cuda",
        "zero": {
            "reduce_bucket": 1,
            "prefetch_bucket": 2,
            "persistence_threshold": 3,
            "max_live_parameters": 4,
            "max_reuse_distance": 5,
            "sub_group": 6,
        },
    },
}


def test_the_settings_of_deepspeed_are_those_of_the_golden_file() -> None:
    found = {
        name: zero_settings.of(models.run_config(Path("model"), Path("rows"), Path("out"), **changes))
        for name, changes in SETTINGS.items()
    }
    text = json.dumps(found, indent=2) + "\n"
    if os.environ.get("GOLDEN") == "rewrite":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
