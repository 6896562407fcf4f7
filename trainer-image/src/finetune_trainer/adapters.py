"""LoRA adapters on a frozen base, through PEFT: other tools read its names and files. lora_forward.py computes them.

Called by trainer.py where the method is LoRA. Adapters are on linear modules of the language model. What
transformers keeps as one parameter, such as the experts of a layer, gets none: PEFT can adapt it, by
target_parameters, but only without dropout, by building all weights of a layer again in every forward pass.
"""

from __future__ import annotations

from typing import Any, cast

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners import tuners_utils
from peft.utils import transformers_weight_conversion as conversion
from transformers import PreTrainedModel

from finetune_api.runtime.run_config import Lora

from . import architecture, lora_forward
from .errors import ModelRefused

ALL_LINEAR = "all-linear"
"""Every linear layer but the output head."""


def attach(model: PreTrainedModel, lora: Lora) -> PeftModel:
    """The model with adapters; only they require gradients. They are fp32, whatever the dtype of the base.

    Raises ModelRefused if the model lacks a target module.
    """
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=cast("int", lora.alpha),  # PEFT accepts floats, against its annotation
        lora_dropout=lora.dropout,
        target_modules=_targets(model, lora.target_modules),
        task_type=TaskType.CAUSAL_LM,
    )
    lora_forward.use(settings)
    try:
        return cast("PeftModel", get_peft_model(model, settings))
    except ValueError as error:
        raise ModelRefused(
            f"training.lora: PEFT has no such adapters for {model.config.model_type}: {error}; name other "
            "target_modules, or train all weights (training.mode: fft)"
        ) from error


def missed(model: PreTrainedModel) -> dict[str, int]:
    """Matrices of the language model without an adapter, by name, and their sizes; of a model that has adapters.

    Neither the embedding nor the output head.
    """
    without = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    outside = {p for module in ends if module is not None for p in module.parameters()}
    others = tuple(f"{part}." for part in architecture.other_parts(model))
    return {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and parameter not in outside and not name.startswith(others) and "lora_" not in name
        and name.removesuffix(".base_layer.weight") not in without
    }  # fmt: skip


def _targets(model: PreTrainedModel, wanted: tuple[str, ...]) -> list[str]:
    """Names of the modules that get adapters. PEFT makes them shorter where they are many."""
    linear = architecture.linear(model)
    if wanted == (ALL_LINEAR,):
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        left_out = _experts(model) | _kernels(model)
        all_of_them = [n for n, module in linear.items() if module is not head and _leaf(n) not in left_out]
        if not all_of_them:
            raise ModelRefused(
                f"training.lora.target_modules: {model.config.model_type} has no linear modules for adapters; train "
                "all weights instead (training.mode: fft)"
            )
        return all_of_them
    found = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in wanted}
    _require_targets(model, found)
    return [name for names in found.values() for name in names]


def _experts(model: PreTrainedModel) -> frozenset[str]:
    """Names of modules that PEFT takes for experts and router of an adapter made with transformers 4.

    It would adapt those instead, whatever the module of that name is in this model.
    """
    tables: Any = conversion  # which does not export them
    pattern = tables._MODEL_TO_CONVERSION_PATTERN.get(model.config.model_type)  # noqa: SLF001
    return frozenset(tables._MOE_TARGET_MODULE_MAPPING.get(pattern, ()))  # noqa: SLF001


def _kernels(model: PreTrainedModel) -> frozenset[str]:
    """Names of linear modules whose weights the kernels of the architecture read by themselves: PEFT refuses them."""
    check: Any = tuners_utils._check_lora_target_modules_mamba  # noqa: SLF001 - the table is inside

    def refused(leaf: str) -> bool:
        try:
            check(LoraConfig(), model, leaf)
        except ValueError:
            return True
        return False

    return frozenset(leaf for leaf in {_leaf(name) for name in architecture.linear(model)} if refused(leaf))


def _require_targets(model: PreTrainedModel, found: dict[str, list[str]]) -> None:
    """PEFT accepts the list if one name matches; a typo in another would silently train fewer modules."""
    read = _kernels(model)
    known = ", ".join(sorted({_leaf(name) for name in architecture.linear(model)} - _experts(model) - read))
    fused = [name for name, p in model.named_parameters() if p.ndim > 2 and not name.endswith(".weight")]
    experts = [
        target
        for target, names in found.items()
        if _leaf(target) in _experts(model) or (not names and any(f".{target}." in f".{name}." for name in fused))
    ]
    missing = [target for target, names in found.items() if not names and target not in experts]
    for targets, what in (
        (experts, "experts, whose weights transformers keeps in one parameter for all, get no adapters:"),
        (
            [target for target in found if _leaf(target) in read],
            f"kernels of {model.config.model_type} read their weights past an adapter:",
        ),
        (missing, "the model has no module"),
    ):
        if targets:
            raise ModelRefused(
                f"training.lora.target_modules: {what} {', '.join(targets)}; its linear modules are {known}; "
                f"correct the name, or set {ALL_LINEAR}"
            )


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
