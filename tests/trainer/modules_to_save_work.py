"""What ranks do in the tests of modules that are trained in full."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from finetune_api.runtime.choices import Method
from finetune_api.runtime.run_config import Lora
from finetune_trainer import adapters, architecture, engines, mesh
from finetune_trainer.collate import collate
from finetune_trainer.environment import RankInfo
from trainer import architectures, models, result_work
from trainer.parity_cases import group, rows

CPU = torch.device("cpu")


def around_a_step(
    folder: Path, output: Path, lora: dict[str, Any], decay: float = 0.01
) -> tuple[dict[str, Tensor], dict[str, Tensor], set[str]]:
    """Parameters before and after an optimizer step, and the names of those that are trained."""
    config = models.run_config(folder, folder, output, method="lora", lora=lora, optimizer__weight_decay=decay)
    with group():
        adapted = adapters.attach(models.loaded(folder, config), Lora(**lora))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        layout = mesh.build(config, RankInfo(0, 1, 0, CPU))
        engine = engines.build(adapted, config, layout)
        before = _values(engine.model)
        batch = collate(rows(4), range(4))
        engine.train([batch], targets=len(batch.labels), learning_rate=1e-3, max_norm=1.0, stop=lambda: False)
        return before, _values(engine.model), set(engine.state()["parameters"])


def _values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def far_from_peft(folder: Path, *more: dict[str, Any]) -> dict[str, float]:
    """By architecture, the largest difference of a logit of an adapter, and of its result that plain PEFT loads.

    With `more` settings, one after the other; else with modules in full. An architecture without biases has none to
    train.
    """
    found = {}
    with group():
        for kind in architectures.ALL:
            base = folder / kind
            architectures.model(kind).save_pretrained(base)
            ends, layer = _ends(loaded(base)), _layer(loaded(base))
            whole: list[dict[str, Any]] = [{"modules_to_save": ends}, {"modules_to_save": layer}]
            for number, each in enumerate(more or whole):
                if "bias" in each and not _has_biases(loaded(base)):
                    continue
                adapted = adapters.attach(loaded(base), Lora(**models.lora(**each)))
                result_work.disturb(adapted)
                output = folder / f"{kind} {number}"
                output.mkdir()
                result = result_work.publish(output, adapted, base, Method.LORA)
                theirs = PeftModel.from_pretrained(loaded(base), str(result))
                difference = result_work.logits(adapted) - result_work.logits(theirs)
                found[output.name] = float(difference.abs().max())
    return found


def _has_biases(model: nn.Module) -> bool:
    architecture.freeze_other_parts(cast("PreTrainedModel", model))
    return any(p.requires_grad and name.endswith(".bias") for name, p in model.named_parameters())


def loaded(folder: Path) -> Any:
    made: Any = architecture.auto_class(AutoConfig.from_pretrained(folder))
    return made.from_pretrained(folder, dtype=torch.float32)


def _ends(model: Any) -> tuple[str, ...]:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return tuple(name for name, module in model.named_modules() if any(module is end for end in ends))


def _layer(model: Any) -> tuple[str, ...]:
    return ("layers.1",) if any(name.endswith("layers.1") for name, _ in model.named_modules()) else ("h.1",)
