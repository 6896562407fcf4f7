"""Weights that stand aside: a placeholder has the shape and the format of a weight, and no memory.

transformers makes one parameter after the other from the files, which are mapped into memory, and puts each into
its module. There this rank's part of it is taken and moved to its device, and a placeholder stays in the module. So
beside its parts a rank holds one parameter at a time, and the ranks of a node share what they read. The engine takes
the parts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

Keep = Callable[[Tensor], Tensor]
"""From a whole weight to what this rank keeps of it, on its device."""
NamedKeep = Callable[[str, Tensor], Tensor]
"""The same, with the name of the weight in its model."""
See = Callable[[str, Tensor], None]
"""Is given a whole weight by its name, in the values that a model computes with."""
_PART = "_part_of_this_rank"
_LOADED = "_is_hf_initialized"
"""Attribute that transformers gives to a parameter from the files; without it the parameter is initialised."""
_IN_SEQUENCE = "HF_DEACTIVATE_ASYNC_LOAD"
"""Variable without which transformers reads ahead with threads, and holds what it has read."""


@contextmanager
def replacing(keep: NamedKeep, compared: Collection[torch.Size]) -> Iterator[None]:
    """Parameters that transformers loads meanwhile are replaced, except those of the `compared` shapes.

    The model is also made meanwhile: only then modules get to know theirs by name.
    """
    parents: dict[nn.Module, tuple[nn.Module, str]] = {}

    def on_child(parent: nn.Module, name: str, child: nn.Module | None) -> None:
        if child is not None:
            parents[child] = parent, name

    def on_registration(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:  # torch says None
        if parameter is None or not hasattr(parameter, _LOADED) or parameter.shape in compared:
            return None
        return _replaced(parameter, partial(keep, ".".join([*_path(module, parents), name])))

    before = os.environ.get(_IN_SEQUENCE)
    hooks = (
        register_module_module_registration_hook(on_child),
        register_module_parameter_registration_hook(on_registration),
    )
    os.environ[_IN_SEQUENCE] = "1"
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        os.environ.pop(_IN_SEQUENCE)
        if before is not None:
            os.environ[_IN_SEQUENCE] = before


def replace(model: nn.Module, keep: NamedKeep) -> None:
    """Replace the parameters of `model` that are still whole."""
    substitute(model, {n: _replaced(parameter, partial(keep, n)) for n, parameter in model.named_parameters()})


def _replaced(parameter: nn.Parameter, keep: Keep) -> nn.Parameter:
    if has_part(parameter):
        return parameter
    whole = parameter.detach()
    return of(keep(whole), whole.shape, whole.dtype, requires_grad=parameter.requires_grad)


def of(part: Tensor, shape: torch.Size, dtype: torch.dtype, *, requires_grad: bool) -> nn.Parameter:
    """A placeholder of a weight of which this rank has `part`."""
    found = nn.Parameter(torch.zeros((), dtype=dtype).expand(shape), requires_grad)
    setattr(found, _LOADED, True)
    setattr(found, _PART, part)
    return found


def _path(module: nn.Module, parents: Mapping[nn.Module, tuple[nn.Module, str]]) -> list[str]:
    """Names from the model down to `module`."""
    if module not in parents:
        return []
    parent, name = parents[module]
    return [*_path(parent, parents), name]


def has_part(parameter: Tensor) -> bool:
    """Whether it is a placeholder."""
    return hasattr(parameter, _PART)


def put(parameter: Tensor, part: Tensor) -> None:
    """Replace what this rank has of the weight."""
    assert has_part(parameter), "no placeholder"
    setattr(parameter, _PART, part)


def take(parameter: nn.Parameter) -> Tensor | None:
    """This rank's part of the weight; None for a parameter that is no placeholder."""
    part: Tensor | None = vars(parameter).pop(_PART, None)
    assert part is not None or parameter.untyped_storage().nbytes() >= parameter.nbytes, (
        "a placeholder without a part"
    )
    return part


def fill(model: nn.Module) -> None:
    """Put whole weights in place of their placeholders."""
    for parameter in model.parameters():
        part = take(parameter)
        if part is not None:
            parameter.data = part


def substitute(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Replace all parameters of `model` by name; tied ones stay tied."""
    new = {old: parameters[name] for name, old in model.named_parameters()}
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            setattr(module, name, new[old])
