"""Modules that are trained in full beside adapters: PEFT's modules_to_save.

PEFT puts a copy beside each of them and keeps the original. Here the module itself is trained, which has the same
name as the copy in PEFT's file, so there is one weight, and engines treat it as full finetuning does. Called by
adapters.py, model.py and export.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune_api.runtime.patterns import is_pattern
from finetune_api.runtime.run_config import Lora
from finetune_api.validation.unknown import nearest

from . import architecture, biases, lora_files, placeholders
from .adapter_folder import printable
from .errors import ModelRefused
from .lora_files import PREFIX, SavedAdapter
from .placeholders import Keep

KEY = "training.lora.modules_to_save"
_LISTS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_QUOTED = 128
"""Letters of a name that a refusal quotes."""
_LISTED = 40
"""Names of modules that a refusal lists."""


def chosen(model: PreTrainedModel, lora: Lora | None) -> dict[str, nn.Module]:
    """The modules by name, none inside another, with those that share a weight with them. Raises ModelRefused.

    A name of the job matches as in PEFT: it is the end of a module's name, also of a part (norm: input_layernorm).
    """
    if lora is None or not lora.modules_to_save:
        return {}
    key = f"training.lora.from: {lora.folder}" if lora.source else KEY
    others = tuple(f"{part}." for part in architecture.other_parts(model))
    modules = {name: module for name, module in model.named_modules() if name}
    own = {name: module for name, module in modules.items() if not f"{name}.".startswith(others)}
    found: dict[str, nn.Module] = {}
    for end in lora.modules_to_save:
        matching = {name: module for name, module in own.items() if name.endswith(end)}
        if lora.source and not any(name.endswith(end) for name in modules):
            continue  # as PEFT does; require_like compares what there is
        if why := _why_not(end, matching, own, outside=any(name.endswith(end) for name in modules)):
            raise ModelRefused(f"{key}: {why}")
        found |= matching
    outermost = _outermost(found | _sharing(model, found))
    _require_readable(key, outermost)
    return outermost


def contains(modules: Iterable[str], name: str) -> bool:
    """Whether `name` is one of these modules or inside one."""
    return f"{name}.".startswith(tuple(f"{module}." for module in modules))


def share_a_weight(modules: Mapping[str, nn.Module]) -> bool:
    """Whether two of them have the same weight."""
    parameters = [p for module in modules.values() for p in module.parameters()]
    return len(parameters) != len(set(parameters))


def weights(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Their weights that full finetuning trains, under each name; of a model without adapters."""
    return {
        f"{module}.{name}": parameter
        for module, each in modules.items()
        for name, parameter in each.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    }


def train(parameters: Iterable[nn.Parameter]) -> None:
    """Let them be trained, in fp32. Placeholders are in fp32 already."""
    for parameter in parameters:
        parameter.requires_grad_(True)
        wide = torch.promote_types(parameter.dtype, torch.float32)
        if parameter.dtype != wide:
            assert not placeholders.has_part(parameter), "a weight that is trained was loaded in another format"
            parameter.data = parameter.data.to(wide)


def of(model: PreTrainedModel | PeftModel) -> list[str]:
    """Names of those that the adapter of `model` has, without PEFT's prefix."""
    if not isinstance(model, PeftModel):
        return []
    (config,) = model.peft_config.values()
    return list(getattr(config, "modules_to_save", None) or ())


def state(model: PeftModel) -> dict[str, Tensor]:
    """All that is in them, and biases, by name in `model`: PEFT's file has to have what is never trained, too."""
    base = model.get_base_model()
    found = tensors({name: base.get_submodule(name) for name in of(model)})
    return {f"{PREFIX}{name}": tensor for name, tensor in found.items()} | biases.of(model)


def tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and persistent buffers, under each name."""
    found: dict[str, Tensor] = {}
    for name, module in modules.items():
        own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
        found |= {f"{name}.{key}": own[key] for key in module.state_dict()}
    return found


def require_like(begun: SavedAdapter, own: Mapping[str, Tensor]) -> None:
    """Raises ModelRefused unless an earlier adapter has exactly this in full, by name in the model."""
    what = f"training.lora.from: {begun.folder}"
    for name, outline in begun.whole.items():
        if name not in own:
            raise ModelRefused(
                f"{what} has {printable(name)} in full, which is nothing of the language model of job.model; set "
                "job.model to the base that it was trained on, or train it further with PEFT"
            )
        if tuple(own[name].shape) != outline.shape or not outline.dtype.is_floating_point:
            raise ModelRefused(
                f"{what} has {printable(name)} with {_spelled(outline.shape)} numbers, and job.model with "
                f"{_spelled(own[name].shape)}; set job.model to the base that it was trained on"
            )
    if missing := sorted(own.keys() - begun.whole.keys()):
        raise ModelRefused(
            f"{what} does not have {missing[0]}, which belongs to its modules_to_save or bias, or shares a weight "
            "with one of them in job.model; train it further with PEFT"
        )


def take_values(model: PeftModel, begun: SavedAdapter, opened: Mapping[str, Any], keep: Keep) -> None:
    """Give the modules of `model` the values of an earlier adapter, or raise ModelRefused."""
    first: dict[Tensor, str] = {}
    for full_name, target in state(model).items():
        name = lora_files.in_model(full_name)
        value = lora_files.value(opened, name).to(target.dtype)
        if not value.isfinite().all():
            raise ModelRefused(f"training.lora.from: {begun.folder}: {name} is not finite; name another adapter")
        other = first.setdefault(target, name)
        if other != name and not torch.equal(lora_files.value(opened, other).to(target.dtype), value):
            raise ModelRefused(
                f"training.lora.from: {begun.folder}: {name} and {other} share a weight in job.model, and were "
                "trained apart; train the adapter further with PEFT"
            )
        if placeholders.has_part(target):
            placeholders.put(target, keep(value))
        else:
            target.copy_(value)


def _spelled(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _why_not(end: str, matching: Mapping[str, nn.Module], modules: Mapping[str, nn.Module], *, outside: bool) -> str:
    """Why what has a name that ends so is not trained; empty if it is."""
    end = printable(end)[:_QUOTED]
    ends = sorted({n.rpartition(".")[2] for n, m in modules.items() if any(True for _ in m.parameters())})
    known = ", ".join([each for each in ends if not each.isdecimal()][:_LISTED])
    lists = [name for name, module in matching.items() if isinstance(module, _LISTS)]
    if lists:
        return f"{lists[0]} is a list of modules; name modules in it"
    if matching and not any(True for module in matching.values() for _ in module.parameters()):
        return f"{next(iter(matching))} has no weights; name modules that have some: {known}"
    if matching:
        return ""
    if outside:
        return f"{end} is outside of the language model, which alone is trained; name some of its modules: {known}"
    if is_pattern(end):
        return f"{end} is no end of a name, and PEFT reads no expressions here; name modules of the model: {known}"
    near = nearest(end, tuple(ends))
    return f"the model has no module {end}{f' (did you mean {near}?)' if near else ''}; name some of its: {known}"


def _require_readable(key: str, modules: Mapping[str, nn.Module]) -> None:
    """Without this check, PEFT, which ties modules again, would compute without the bias of a tied head."""
    count = Counter(parameter for module in modules.values() for parameter in module.parameters())
    for name, module in modules.items():
        of_it = dict(module.named_parameters(recurse=False))
        if "bias" in of_it and any(count[parameter] > 1 for parameter in of_it.values()):
            raise ModelRefused(
                f"{key}: {name} shares its weight with another module and has a bias, which PEFT would leave out; "
                "train without it, or train all weights (training.mode: fft)"
            )


def _sharing(model: PreTrainedModel, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Modules with a weight of these: whichever of the two is named, there is one weight to train."""
    parameters = {p for module in modules.values() for p in module.parameters()}
    return {
        name: module
        for name, module in model.named_modules()
        if any(p in parameters for p in module.parameters(recurse=False))
    }


def _outermost(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Without those that are inside another, and without those that have no weights."""
    found = {name: module for name, module in modules.items() if any(True for _ in module.parameters())}
    return {name: module for name, module in sorted(found.items()) if not contains(found.keys() - {name}, name)}


def require_ties_as_expected(loaded: Collection[str], outline: Collection[str]) -> None:
    """Raises ModelRefused where files have two weights and config.json says that they are one."""
    if set(loaded) != set(outline):
        differing = ", ".join(sorted(set(loaded) ^ set(outline)))
        raise ModelRefused(
            f"{KEY}: {differing} shares its weight by config.json, and the weight files have one of its own; set "
            "tie_word_embeddings there to false, or save the model again with model.save_pretrained(folder)"
        )


def adapter_layers_left(
    found: Mapping[str, list[str]], modules: Collection[str], key: str = "training.lora.target_modules"
) -> dict[str, list[str]]:
    """Of each target of a `key` the layers that are not trained in full. Raises ModelRefused for one without any."""
    left = {target: [name for name in names if not contains(modules, name)] for target, names in found.items()}
    if gone := [target for target, names in left.items() if not names]:
        raise ModelRefused(
            f"{KEY}: every layer that {key} has for {', '.join(gone)} is trained in full, and "
            "gets no adapter beside that; name it in one of the two, or train all weights (training.mode: fft)"
        )
    return left
