"""What ranks do in the tests of adapters that begin with a part of the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import PeftModel
from torch import Tensor

from finetune_api.runtime.choices import Device, LoraInit
from finetune_api.runtime.report import FinalReport
from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import adapters, decomposition, environment, initial_factors, model, placeholders, preparation
from finetune_trainer.decomposition import InitialFactors, Size
from finetune_trainer.handoff import Handoff
from finetune_trainer.quantised_layer import QuantisedLinear
from finetune_trainer.stop import Stop
from finetune_trainer.trainer import Trainer
from trainer import result_work, trainer_work
from trainer.parity_cases import group
from trainer.trainer_work import ALONE

CPU = torch.device("cpu")


def adapted(config: RunConfig) -> tuple[PeftModel, dict[str, InitialFactors]]:
    """A model as a run has it before its first step, and its initial factors."""
    folder, lora = Path(config.model), config.lora
    assert lora is not None
    initial = initial_factors.of_run(folder, config, CPU, lambda: None)
    base = model.load(folder, config, lambda weight: weight.clone(), CPU, initial)
    placeholders.fill(base)
    found = adapters.attach(base, lora)
    decomposition.begin(found, initial)
    return found, initial


def published(config: RunConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits: before training; after that; of the result, which plain PEFT has loaded onto the base; of the base."""
    with group():
        ours, _ = adapted(config)
        before = result_work.logits(ours)
        result_work.disturb(ours)
        result = result_work.publish(Path(config.output), ours, Path(config.model), config.method)
        base = _base(config)
        whole = result_work.logits(base)
        theirs = PeftModel.from_pretrained(base, str(result))
        return before, result_work.logits(ours), result_work.logits(theirs), whole


def _base(config: RunConfig) -> Any:
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    made: Any = AutoModelForCausalLM
    return made.from_pretrained(config.model, dtype=torch.float32)


def quantised(config: RunConfig) -> tuple[dict[str, Tensor], dict[str, InitialFactors]]:
    """What layers of a quantised base compute with, and the initial factors."""
    with group():
        found, initial = adapted(config)
        layers = dict(found.get_base_model().named_modules())
        bases: dict[str, Any] = {name: layers[name].base_layer for name in initial}
        assert all(isinstance(each, QuantisedLinear) for each in bases.values())
        return {name: each.whole(each.weight).clone() for name, each in bases.items()}, initial


def run_in_two_places(config: RunConfig, handoff: Path, at: int) -> FinalReport:
    """Stopped at the `at`-th question, and resumed where a decomposition draws other random numbers."""
    torch.set_num_threads(1)
    handoff.mkdir()
    preparation.prepare(config, 0, handoff, lambda _: None)
    with environment.process_group(ALONE, Device.CPU) as rank_info:
        report = Trainer(Handoff.read(handoff), handoff, rank_info, trainer_work.StopAt(at)).run()
    assert report.exit_code != 0, "it was not stopped"
    elsewhere = patch.object(decomposition, "_principal", _with_other_numbers)
    with elsewhere, environment.process_group(ALONE, Device.CPU) as rank_info:
        return Trainer(Handoff.read(handoff), handoff, rank_info, Stop()).run()


_principal = decomposition._principal


def _with_other_numbers(weight: Tensor, init: LoraInit, size: Size, seed: int) -> tuple[Tensor, Tensor]:
    """As those of a GPU are not those of a CPU."""
    return _principal(weight, init, size, seed + 1)


def run_stopped(config: RunConfig, at: int) -> FinalReport:
    """On this rank among others, stopped at the `at`-th check."""
    return trainer_work.trainer(config, trainer_work.StopAt(at)).run()
