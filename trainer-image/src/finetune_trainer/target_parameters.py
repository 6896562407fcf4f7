"""Adapters on what transformers keeps as one parameter of three dimensions: PEFT's target_parameters.

The experts of a layer are such: [experts, outputs, inputs], or [experts, inputs, outputs] where their module says
is_transposed. Each matrix gets factors A and B of its own. Which parameters get adapters, what is refused, and which
parameter the factors in a file are of. Computed by fused_forward.py; called by adapters.py and merge.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune_api.runtime.choices import LoraInit
from finetune_api.runtime.patterns import is_pattern
from finetune_api.runtime.run_config import Lora
from finetune_api.validation.unknown import nearest

from . import architecture, lora_files, parameter_files
from .adapter_folder import printable
from .errors import ModelRefused
from .lora_files import SavedAdapter
from .parameter_files import AdaptedParameter, is_end

KEY = "training.lora.target_parameters"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PARTS = 2
"""Of a name, from its end, where names are listed."""
_LISTED = 20
Refuse = Callable[[str], ModelRefused]
"""From what is wrong with an adapter to its refusal."""


def chosen(model: PreTrainedModel, lora: Lora) -> dict[str, list[str]]:
    """Names of parameters by target of the job. Raises ModelRefused for a target that has none."""
    known = fused(model) if lora.target_parameters else {}
    found = {target: [name for name in known if is_end(name, target)] for target in lora.target_parameters}
    for target, names in found.items():
        if not names:
            raise ModelRefused(f"{KEY}: {_why_not(model, target, known)}")
    return found


def require_possible(lora: Lora) -> None:
    """Raises ModelRefused for settings that adapters on parameters cannot have."""
    if not lora.target_parameters:
        return
    named = "the adapter of training.lora.from has" if lora.source else f"{KEY} asks for"
    otherwise = "name another adapter" if lora.source else f"leave {KEY.rpartition('.')[2]} out"
    for key, wrong, why, remedy in (
        ("dropout", lora.dropout > 0, f"{lora.dropout:g} drops inputs of A", "set dropout to 0"),
        ("use_dora", lora.dora, "true trains lengths of rows", "set use_dora to false"),
        ("init_lora_weights", lora.init.changes_base, f"{lora.init} needs a linear layer",
         f"set it to {LoraInit.DEFAULT} or {LoraInit.GAUSSIAN}"),
    ):  # fmt: skip
        if wrong:
            raise ModelRefused(
                f"training.lora.{key}: {why}, which PEFT has for modules only, and {named} adapters on parameters; "
                f"{remedy}, or {otherwise}"
            )


def fused(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Parameters of the language model that are a matrix for each expert, by name."""
    others = tuple(f"{part}." for part in architecture.other_parts(model))
    convolutions = {p for m in model.modules() if isinstance(m, _CONVOLUTIONS) for p in m.parameters(recurse=False)}
    return {
        name: p for name, p in model.named_parameters()
        if p.ndim == 3 and p not in convolutions and not name.startswith(others)
        and not _has_modules_inside(model.get_submodule(name.rpartition(".")[0]))
    }  # fmt: skip


def _has_modules_inside(module: nn.Module) -> bool:
    """Whether it computes with more than its own parameters: it would look for its modules in PEFT's wrapper."""
    return any(True for child in module.children() for _ in child.parameters())


def _why_not(model: PreTrainedModel, target: str, known: Collection[str]) -> str:
    """Why `target` is no parameter that gets adapters, and what to do."""
    ends = _ends(known)
    way_out = f"name some of {', '.join(ends[:_LISTED])}" if ends else (
        f"{model.config.model_type} has none of three dimensions: leave target_parameters out"
    )  # fmt: skip
    quoted = printable(target)
    if is_pattern(target):
        return f"{quoted} is no end of a name, and PEFT reads no expressions here; {way_out}"
    alike = {name: p for name, p in model.named_parameters() if is_end(name, target)}
    linear = [name for name in alike if name.removesuffix(".weight") in architecture.linear(model)]
    if linear:
        module = linear[0].removesuffix(".weight").rpartition(".")[2]
        return f"{quoted} is the weight of a linear layer; name {module} in training.lora.target_modules"
    if alike:
        name, parameter = next(iter(alike.items()))
        shape = " x ".join(map(str, parameter.shape))
        what = "is of a convolution or outside of the language model" if parameter.ndim == 3 else (
            f"has {shape} numbers, and not a matrix for each expert")  # fmt: skip
        return f"{name} {what}; {way_out}"
    inside = [name for name in known if is_end(name.rpartition(".")[0], target)]
    if inside:
        return f"{quoted} is a module; name its parameters: {', '.join(_ends(inside))}"
    near = nearest(target, (*ends, *(end.rpartition(".")[2] for end in ends)))
    return f"the model has no parameter {quoted}{f' (did you mean {near}?)' if near else ''}; {way_out}"


def _ends(names: Collection[str]) -> list[str]:
    return sorted({".".join(name.split(".")[-_PARTS:]) for name in names})


def listed(model: PreTrainedModel) -> str:
    """Ends of names of those that there are."""
    return ", ".join(_ends(fused(model))[:_LISTED])


def for_peft(model: nn.Module, lora: Lora, names: Sequence[str]) -> list[str]:
    """As short as PEFT reads them: the ends of the job, where they are of these `names` and no other parameter."""
    meant = {n for n, _ in model.named_parameters() if any(is_end(n, end) for end in lora.target_parameters)}
    return sorted(set(lora.target_parameters)) if meant == set(names) else sorted(names)


@contextmanager
def without_wrong_warning() -> Iterator[None]:
    """PEFT says of patterns of parameters, which it applies, that it ignores them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        yield


def adapted(model: nn.Module) -> dict[str, nn.Module]:
    """What has an adapter in a model that PEFT has changed, by the name of its linear module or of its parameter."""
    return {
        _name(name, module): module for name, module in model.named_modules() if hasattr(module, "lora_A")
    }  # fmt: skip


def _name(name: str, module: nn.Module) -> str:
    if not isinstance(module, ParamWrapper):
        return name
    return f"{parameter_files.module_and_depth(name)[0]}.{module.parameter_name}"


def saved(model: nn.Module, adapter: str) -> dict[str, AdaptedParameter]:
    """Factors of parameters in such a model, as a file has them."""
    wrappers: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, ParamWrapper)}
    return {
        name: AdaptedParameter(tuple(m.lora_A[adapter].weight.shape), tuple(m.lora_B[adapter].weight.shape))
        for name, m in wrappers.items()
    }


@dataclass(frozen=True)
class FusedFactors:
    """Factors in a file, and how an update is made of them."""

    name: str
    rank: int
    alpha: float
    scaling: float
    transposed: bool


def in_model(model: PreTrainedModel, begun: SavedAdapter, refuse: Refuse) -> dict[str, FusedFactors]:
    """The factors of an earlier adapter by the parameter of `model` that they are of. Raises what `refuse` makes."""
    known, found, there = fused(model), {}, _by_module(begun)
    for parameter in known:
        if (
            _is_target(begun, parameter)
            and parameter.rpartition(".")[0] not in there
            and parameter not in begun.whole
        ):
            raise refuse(f"its target_parameters name {parameter}, and its file has no factors for that")
    for module, names in there.items():
        parameters = [n for n in known if n.rpartition(".")[0] == module and _is_target(begun, n)]
        if set(names) != set(range(len(parameters))):
            raise refuse(
                f"{printable(module)} has {len(names)} adapters on parameters, and {len(parameters)} parameters that "
                "they can be of"
            )
        for depth, parameter in enumerate(parameter_files.ordered(parameters)):
            found[parameter] = _factors(model, begun, names[depth], parameter, refuse)
    return found


def _by_module(begun: SavedAdapter) -> dict[str, dict[int, str]]:
    """Names of factors in the file, by module and depth."""
    found: dict[str, dict[int, str]] = {}
    for name in begun.parameters:
        module, depth = parameter_files.module_and_depth(name)
        found.setdefault(module, {})[depth] = name
    return found


def _is_target(begun: SavedAdapter, parameter: str) -> bool:
    return any(is_end(parameter, end) for end in begun.targets)


def _factors(model: PreTrainedModel, begun: SavedAdapter, name: str, parameter: str, refuse: Refuse) -> FusedFactors:
    rank, alpha, scaling = lora_files.scaling(begun, parameter)
    if type(rank) is not int:
        raise refuse(f"{parameter} has the rank {str(rank)[:20]} there, which is no whole number")
    experts, inputs, outputs = model.get_parameter(parameter).shape
    transposed = bool(getattr(model.get_submodule(parameter.rpartition(".")[0]), "is_transposed", False))
    if not transposed:
        inputs, outputs = outputs, inputs
    own, wanted = begun.parameters[name], AdaptedParameter((experts * rank, inputs), (outputs, rank * experts))
    if own != wanted:
        raise refuse(
            f"{parameter} has factors {list(own.a)} and {list(own.b)} there, and {experts} matrices with the rank "
            f"{str(rank)[:20]} would have {list(wanted.a)} and {list(wanted.b)}"
        )
    return FusedFactors(name, rank, alpha, scaling, transposed)


def update(opened: Mapping[str, Any], factors: FusedFactors) -> Tensor:
    """s · B A of each expert in fp32, in the shape of the parameter."""
    a, b = (each.float() for each in lora_files.factors(opened, factors.name))
    of_experts = a.view(-1, factors.rank, a.shape[1]), b.view(b.shape[0], factors.rank, -1)
    order = "eri,ore->eio" if factors.transposed else "eri,ore->eoi"
    return torch.einsum(order, *of_experts).mul_(factors.scaling)


def without_wrappers(name: str) -> str:
    """The name of a parameter without what PEFT has put around its module."""
    return ".".join(part for part in name.split(".") if f".{part}" != parameter_files.INNER)
