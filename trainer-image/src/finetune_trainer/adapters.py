"""LoRA adapters on a frozen base, through PEFT: other tools read its names and files. lora_forward.py computes them.

Called by trainer.py where the method is LoRA. Adapters are on linear modules of the language model, and on what
transformers keeps as one parameter, such as the experts of a layer, where the job names that (target_parameters.py).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners import tuners_utils
from peft.utils import transformers_weight_conversion as conversion
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_api.runtime.choices import LoraBias, LoraInit
from finetune_api.runtime.patterns import end_of_name, is_pattern, whole_name
from finetune_api.runtime.run_config import Lora

from . import (
    architecture,
    biases,
    decomposition,
    dora,
    fused_forward,
    lora_files,
    lora_forward,
    target_parameters,
    token_rows,
    whole_modules,
)
from .adapter_folder import printable
from .decomposition import Size
from .errors import ModelRefused
from .export import ADAPTER
from .expressions import Expressions
from .lora_files import SavedAdapter
from .lora_forward import LoraLinear
from .placeholders import Keep

T = TypeVar("T")

_KEY = "training.lora.target_modules"
_Target = tuple[str, str]
"""The key of a job, and one of its texts."""
ALL_LINEAR = "all-linear"
"""Every linear layer but the output head."""


@dataclass(frozen=True)
class _Sizes:
    """Rank and alpha by the name of each module or parameter that gets an adapter."""

    ranks: Mapping[str, int]
    alphas: Mapping[str, float]


def attach(model: PreTrainedModel, lora: Lora) -> PeftModel:
    """The model with new adapters; they, the modules to save and biases require gradients, and are fp32.

    Raises ModelRefused if the model lacks a target module, or has one that gets none.
    """
    target_parameters.require_possible(lora)
    whole = whole_modules.chosen(model, lora)
    begun = lora_files.read(Path(lora.folder)) if lora.folder else None
    sizes = _like(model, begun, lora, whole) if begun else _chosen(model, lora, whole)
    fused = target_parameters.fused(model)
    parameters, modules = ([n for n in sizes.ranks if (n in fused) == of_fused] for of_fused in (True, False))
    decomposition.require_possible(model, lora, _of_layers(model, lora, sizes))
    if lora.dora:
        dora.require_possible(model, modules, lora.folder)
    trained = whole_modules.weights(whole) | biases.chosen(model, lora, modules)
    with_rows = token_rows.chosen(model, lora, whole, modules)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=cast("int", lora.alpha),  # PEFT accepts floats, against its annotation
        lora_dropout=lora.dropout,
        target_modules=modules,
        target_parameters=target_parameters.for_peft(model, lora, parameters) or None,
        rank_pattern=lora_files.differing(sizes.ranks, lora.rank),
        alpha_pattern=lora_files.differing(sizes.alphas, lora.alpha),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        init_lora_weights="gaussian" if lora.init is LoraInit.GAUSSIAN else True,
        task_type=TaskType.CAUSAL_LM,
    )
    lora_forward.use(settings, dora.DoraLinear if lora.dora else LoraLinear)
    try:
        with target_parameters.without_wrong_warning():
            found = cast("PeftModel", get_peft_model(model, settings))
    except ValueError as error:
        raise ModelRefused(
            f"training.lora: PEFT has no such adapters for {model.config.model_type}: {error}; name other "
            "target_modules, or train all weights (training.mode: fft)"
        ) from error
    fused_forward.use(model)
    elsewhere = sorted(target_parameters.adapted(model).keys() ^ sizes.ranks.keys())
    assert not elsewhere, f"PEFT has put adapters elsewhere: {elsewhere[:5]}"
    whole_modules.train(trained.values())
    settings.bias = lora.bias.value  # for the file: PEFT itself would train those of other parts, too
    if whole:  # for the file: PEFT itself would put a copy beside each of them
        settings.modules_to_save = list(whole)
        settings.ensure_weight_tying = whole_modules.share_a_weight(whole)
    if begun is not None and (begun.rows or with_rows):
        token_rows.require_like(begun, with_rows, lora.token_ids)
    if with_rows:  # for the file, as well
        settings.trainable_token_indices = token_rows.train(with_rows, lora.token_ids)
    return found


def in_full(model: PreTrainedModel, lora: Lora | None) -> dict[str, nn.Parameter]:
    """Weights that are trained in full beside the adapters that `attach` makes, by name. Raises ModelRefused."""
    whole = whole_modules.chosen(model, lora)
    found = whole_modules.weights(whole)
    if lora is None:
        return found
    layers: Collection[str] = ()
    if lora.bias is LoraBias.LORA_ONLY:
        layers = lora_files.read(Path(lora.folder)).layers if lora.folder else _chosen(model, lora, whole).ranks
    return found | biases.chosen(model, lora, layers)


def sizes(model: PreTrainedModel, lora: Lora) -> dict[str, Size]:
    """Of the new adapters that `attach` makes, by the names of layers."""
    return _of_layers(model, lora, _chosen(model, lora, whole_modules.chosen(model, lora)))


def _of_layers(model: PreTrainedModel, lora: Lora, found: _Sizes) -> dict[str, Size]:
    linear = architecture.linear(model)
    layers = {name: linear[name] for name in found.ranks if name in linear}
    return {
        name: Size(
            rank,
            found.alphas[name] / (math.sqrt(rank) if lora.rslora else rank),
            *_features(layers[name]),
            transposed=isinstance(layers[name], Conv1D),
        )
        for name, rank in found.ranks.items()
        if name in layers
    }


def take_values(model: PeftModel, folder: Path, keep: Keep) -> None:
    """Give the adapters of `model` the values of the one that they are like. Raises ModelRefused for NaN in these.

    `keep`: what this rank has of modules that are trained in full.
    """
    begun, modules = lora_files.read(folder), cast("Any", dict(model.get_base_model().named_modules()))
    with begun.opened() as opened, torch.no_grad():
        for name in (*begun.layers, *begun.parameters):
            values = dict(zip(("lora_A", "lora_B"), lora_files.factors(opened, name), strict=True))
            if name in begun.layers and begun.layers[name].dora:
                values[architecture.MAGNITUDES] = lora_files.magnitudes(opened, name)
            for kind, value in values.items():
                weight = getattr(modules[name], kind)[ADAPTER].weight
                weight.copy_(value)
                _require_finite(begun, f"{name} has numbers in {kind} that", weight)
        whole_modules.take_values(model, begun, opened, keep)
        token_rows.take_values(model, begun, opened)


def _require_finite(begun: SavedAdapter, what: str, weight: Tensor) -> None:
    if not weight.isfinite().all():
        raise ModelRefused(
            f"adapter {begun.folder}: {what} are not finite; name another one in training.lora.from, or leave it out "
            "to begin a new one"
        )


def missed(model: PreTrainedModel) -> dict[str, int]:
    """Frozen matrices of the language model without an adapter, by name, and their sizes.

    `model` has adapters.

    Neither the embedding nor the output head.
    """
    adapted = target_parameters.adapted(model)
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    outside = {p for module in ends if module is not None for p in module.parameters()}
    others = tuple(f"{part}." for part in architecture.other_parts(model))
    parameters = {target_parameters.without_wrappers(name): p for name, p in model.named_parameters()}
    return {
        name: parameter.numel()
        for name, parameter in parameters.items()
        if parameter.ndim > 1 and not parameter.requires_grad and parameter not in outside
        and not name.startswith(others) and "lora_" not in name
        and name not in adapted and name.removesuffix(".weight") not in adapted
    }  # fmt: skip


def _chosen(model: PreTrainedModel, lora: Lora, whole: Collection[str]) -> _Sizes:
    """Those that the job asks for, without what is in a module of `whole`."""
    targets = _targets(model, lora, whole)
    ranks = _by_layer("rank_pattern", lora.rank_pattern, targets)
    alphas = _by_layer("alpha_pattern", lora.alpha_pattern, targets)
    return _Sizes(
        {name: ranks.get(name, lora.rank) for name in targets},
        {name: alphas.get(name, lora.alpha) for name in targets},
    )


def _like(model: PreTrainedModel, begun: SavedAdapter, lora: Lora, whole: Mapping[str, nn.Module]) -> _Sizes:
    """Those of an earlier adapter, which has to be one of this model, and to have in full what `lora` asks for."""
    whole_modules.require_like(begun, whole_modules.tensors(whole) | biases.chosen(model, lora, begun.layers))
    of_parameters = target_parameters.in_model(model, begun, partial(_of_another_model, begun))
    linear, modules = architecture.linear(model), dict(model.named_modules())
    for name, layer in begun.layers.items():
        if name in linear and _features(linear[name]) == (layer.inputs, layer.outputs):
            continue
        if name in linear:
            why = (
                f"has {_spelled(*_features(linear[name]))} in job.model, and {_spelled(layer.inputs, layer.outputs)}"
            )
            remedy = "set job.model to the base that it was trained on"
        elif name in modules:
            why = "is no linear layer of the language model, which alone gets adapters here, and it has one"
            remedy = "train it further with PEFT"
        else:
            why = "is no layer of job.model, and it has an adapter"
            remedy = "set job.model to its base, or, if it is, load it with PEFT and save it with today's names"
        raise _of_another_model(begun, f"{printable(name)} {why} there", remedy)
    every = dict(begun.layers) | of_parameters
    return _Sizes({name: each.rank for name, each in every.items()}, {n: each.alpha for n, each in every.items()})


def _of_another_model(
    begun: SavedAdapter, what: str, remedy: str = "set job.model to the base that it was trained on"
) -> ModelRefused:
    which = f", of {begun.base}" if begun.base else ""
    return ModelRefused(
        f"training.lora.from: {begun.folder} is the adapter of another model{which}: {what}; {remedy}; or name "
        "another adapter"
    )


def _features(module: Any) -> tuple[int, int]:
    """Of inputs and of outputs."""
    return (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)


def _spelled(inputs: int, outputs: int) -> str:
    return f"{inputs} inputs and {outputs} outputs"


def _targets(model: PreTrainedModel, lora: Lora, whole: Collection[str] = ()) -> list[str]:
    """Names of the modules and parameters that get adapters. PEFT makes them shorter where they are many."""
    linear, expressions = architecture.linear(model), Expressions()
    found = {
        target: _all_linear(model, linear) if target == ALL_LINEAR
        else [name for name in linear if _is_meant(name, target, expressions)]
        for target in lora.target_modules
    }  # fmt: skip
    _require_targets(model, found)
    found = whole_modules.adapter_layers_left(found, whole)
    parameters = whole_modules.adapter_layers_left(
        target_parameters.chosen(model, lora), whole, target_parameters.KEY
    )
    # One text may be a target in both.
    both = {(_KEY, target): names for target, names in found.items()}
    both |= {(target_parameters.KEY, target): names for target, names in parameters.items()}
    if lora.layers is not None:
        both = _in_layers(both, set(lora.layers))
    if not both:
        raise ModelRefused(
            "training.lora.target_modules: it is empty, and nothing else is named; name layers, or parameters in "
            "target_parameters"
        )
    return list(dict.fromkeys(name for names in both.values() for name in names))


def _all_linear(model: PreTrainedModel, linear: Mapping[str, nn.Module]) -> list[str]:
    """Not the head, and no layer that has a reason to be left as it is."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    left_out = _experts(model) | _kernels(model)
    found = [name for name, each in linear.items() if each is not head and _leaf(name) not in left_out]
    if not found:
        raise ModelRefused(
            f"training.lora.target_modules: {model.config.model_type} has no linear modules for adapters; train "
            "all weights instead (training.mode: fft)"
        )
    return found


def _is_meant(name: str, target: str, expressions: Expressions) -> bool:
    if is_pattern(target):
        return _matches("target_modules", target, whole_name, name, expressions)
    return f".{name}".endswith(f".{target}")


def _matches(
    key: str, text: str, read: Callable[[str], re.Pattern[str]], name: str, expressions: Expressions
) -> bool:
    try:
        return expressions.matches(read(text).pattern, name)
    except ValueError as error:
        raise ModelRefused(
            f"training.lora.{key}: {text} is no regular expression: {error}; correct it, or write the end of a name"
        ) from error


def _in_layers(found: Mapping[_Target, list[str]], layers: set[int]) -> dict[_Target, list[str]]:
    """Of each target those that are in layers of these numbers: the first number before the end of a name."""
    numbers = {target: {name: _number(name) for name in names} for target, names in found.items()}
    for (key, target), known in numbers.items():
        if layers.isdisjoint(known.values()):
            raise ModelRefused(
                f"training.lora.layers_to_transform: {target} is in {_layers(known.values())} only; name one of "
                f"them, or leave it out of {key}"
            )
    every = {number for known in numbers.values() for number in known.values()}
    if missing := layers - every:
        raise ModelRefused(
            f"training.lora.layers_to_transform: {_layers(missing)} of the model has no target module; there are "
            f"{_layers(every)}; correct the numbers, or leave the key out to adapt all"
        )
    return {target: [name for name, number in known.items() if number in layers] for target, known in numbers.items()}


def _layers(numbers: Iterable[int | None]) -> str:
    found = sorted({number for number in numbers if number is not None})
    return f"layer{'s' * (len(found) > 1)} {', '.join(map(str, found))}" if found else "no numbered layer"


def _number(name: str) -> int | None:
    *parents, _ = name.split(".")
    return next((int(part) for part in parents if part.isdecimal()), None)


def _by_layer(key: str, patterns: Sequence[tuple[str, T]], targets: Sequence[str]) -> dict[str, T]:
    """The value of each target that a pattern is of. A pattern that is of no target is a typo."""
    expressions = Expressions()
    holding = {
        name: next((each for each in patterns if _matches(key, each[0], end_of_name, name, expressions)), None)
        for name in targets
    }
    used = {found[0] for found in holding.values() if found}
    if unused := [text for text, _ in patterns if text not in used]:
        leaves = ", ".join(sorted({_leaf(name) for name in targets}))
        raise ModelRefused(
            f"training.lora.{key}: {', '.join(unused)} is of no module that gets an adapter, or longer patterns are "
            f"of all that it names; adapters are on {leaves}; "
            "correct the pattern, or remove it"
        )
    return {name: found[1] for name, found in holding.items() if found}


def _require_targets(model: PreTrainedModel, found: dict[str, list[str]]) -> None:
    """PEFT accepts the list if one name matches; a typo in another would silently train fewer modules."""
    read, experts = _kernels(model), _experts(model)
    known = ", ".join(sorted({_leaf(name) for name in architecture.linear(model)} - experts - read))
    fused = [name for name, p in model.named_parameters() if p.ndim > 2 and not name.endswith(".weight")]
    leaves = {target: {_leaf(name) for name in names} or {_leaf(target)} for target, names in found.items()}
    taken = [
        target
        for target, names in found.items()
        if leaves[target] & experts or (not names and any(f".{target}." in f".{name}." for name in fused))
    ]
    missing = [target for target, names in found.items() if not names and target not in taken]
    parameters = f"; or name {target_parameters.listed(model)} in {target_parameters.KEY}" if taken else ""
    for targets, what in (
        (taken, "experts, whose weights transformers keeps in one parameter for all, are no modules:"),
        (
            [target for target in found if leaves[target] & read],
            f"kernels of {model.config.model_type} read their weights past an adapter:",
        ),
        ([_with_nearest(target, known.split(", ")) for target in missing], "the model has no module"),
    ):
        if targets:
            raise ModelRefused(
                f"training.lora.target_modules: {what} {', '.join(targets)}; its linear modules are {known}; "
                f"name some of these, or set {ALL_LINEAR}{parameters}"
            )


def _with_nearest(target: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(_leaf(target), known, 1)
    return f"{target} (did you mean {near[0]}?)" if near else target


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


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
