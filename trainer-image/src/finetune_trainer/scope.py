"""What of the model a run trains, said before its weights are read. Called by trainer.py.

The model and its adapters are made without memory for this, so what cannot be trained as asked is refused here too.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import cast

from peft import PeftModel
from transformers import PreTrainedModel

from finetune_api.runtime.run_config import BaseQuantisation, RunConfig

from . import (
    adapters,
    architecture,
    biases,
    lora_files,
    model,
    quantised_base,
    target_parameters,
    token_rows,
    whole_modules,
)
from .collectives import on_rank_0

_log = logging.getLogger(__name__)


def say(folder: Path, config: RunConfig) -> None:
    """Log it once. Collective; raises ModelRefused on every rank."""

    def on_first() -> None:
        base = model.unloaded(folder)
        how, whole = config.quantisation, whole_modules.chosen(base, config.lora)
        stored = "" if how is None else _stored(base, how, whole)
        adapted = base if config.lora is None else adapters.attach(base, config.lora)
        _log.warning("%s", sentence(adapted))
        if stored:
            _log.warning("%s", stored)

    on_rank_0(on_first)


def sentence(adapted: PreTrainedModel | PeftModel) -> str:
    """What is trained of a model, which may be without memory."""
    whole = sum(parameter.numel() for parameter in adapted.parameters())
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    base = cast("PreTrainedModel", adapted.get_base_model() if isinstance(adapted, PeftModel) else adapted)
    parts = [f"Trains {'all' if trained == whole else f'{_count(trained)} of'} {_count(whole)} parameters"]
    others = architecture.other_parts(base)
    in_full = {name: base.get_submodule(name) for name in whole_modules.of(adapted)}
    if others:
        parts.append(f"rows are text, so these parts are frozen: {', '.join(others)}")
    if isinstance(adapted, PeftModel):
        adapted_modules = {_leaf(name.removesuffix(".weight")) for name in target_parameters.adapted(base)}
        parts.append(f"adapters are on {', '.join(sorted(adapted_modules))}")
        if in_full:
            shared = ", with one weight for both" * whole_modules.share_a_weight(in_full)
            parts.append(f"trained in full are {', '.join(architecture.patterns(in_full))}{shared}")
        if of_bias := biases.of(adapted):
            parts.append(f"biases are trained in {', '.join(architecture.patterns(_modules(of_bias)))}")
        if rows := token_rows.summary(adapted):
            parts.append(rows)
        missed = adapters.missed(base)
        if missed:
            share = sum(missed.values()) / whole
            parts.append(
                f"no adapters are on {', '.join(architecture.patterns(missed))} ({share:.0%} of the parameters)"
            )
    routers = not isinstance(adapted, PeftModel) or architecture.have_routers(whole_modules.state(adapted))
    if routers and (factor := architecture.router_loss(base)) is not None:
        asked = "(output_router_logits and router_aux_loss_coef in config.json)"
        parts.append(f"the loss includes {factor:g} x the router's {asked}" if factor else f"no router loss {asked}")
    return "; ".join(parts) + "."


def _stored(base: PreTrainedModel, how: BaseQuantisation, whole: Collection[str]) -> str:
    """Which matrices of the base are quantised, and which are not."""
    chosen = {f"{name}.weight": layer.weight.numel() for name, layer in quantised_base.chosen(base, whole).items()}
    others = [name for name, p in base.named_parameters() if p.ndim > 1 and name not in chosen]
    share = sum(chosen.values()) / sum(p.numel() for p in base.parameters())
    kept = f"; not quantised are {', '.join(architecture.patterns(others))}" if others else ""
    scales = " with scales of 8 bits" if how.double else ""
    return f"Stores {share:.0%} of the base in {how.format}{scales}{kept}."


def _modules(parameters: Iterable[str]) -> list[str]:
    """Of parameters by their names beside adapters."""
    return [lora_files.in_model(name).rpartition(".")[0] for name in parameters]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _count(parameters: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return f"{parameters:,}"
