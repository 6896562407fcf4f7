"""Weights that stand aside: a placeholder has the shape and the format of a weight, and no memory.

transformers makes one parameter after the other from the files, which are mapped into memory, and puts each into
its module. There this rank's part of it is taken and moved to its device, and a placeholder stays in the module. So
beside its parts a rank holds one parameter at a time, and the ranks of a node share what they read. The engine takes
the parts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

Keep = Callable[[Tensor], Tensor]
"""From a whole weight to what this rank keeps of it, on its device."""
_PART = "_part_of_this_rank"
_LOADED = "_is_hf_initialized"
"""Attribute that transformers gives to a parameter from the files; without it the parameter is initialised."""
_IN_SEQUENCE = "HF_DEACTIVATE_ASYNC_LOAD"
"""Variable without which transformers reads ahead with threads, and holds what it has read."""


@contextmanager
def replacing(keep: Keep, compared: Collection[torch.Size]) -> Iterator[None]:
    """Parameters that transformers loads meanwhile are replaced, except those of the `compared` shapes."""

    def on_registration(_: nn.Module, __: str, parameter: nn.Parameter | None) -> Any:  # torch says None
        if parameter is None or not hasattr(parameter, _LOADED) or parameter.shape in compared:
            return None
        return _replaced(parameter, keep)

    before = os.environ.get(_IN_SEQUENCE)
    hook = register_module_parameter_registration_hook(on_registration)
    os.environ[_IN_SEQUENCE] = "1"
    try:
        yield
    finally:
        hook.remove()
        os.environ.pop(_IN_SEQUENCE)
        if before is not None:
            os.environ[_IN_SEQUENCE] = before


def replace(model: nn.Module, keep: Keep) -> None:
    """Replace the parameters of `model` that are still whole."""
    substitute(model, {name: _replaced(parameter, keep) for name, parameter in model.named_parameters()})


def _replaced(parameter: nn.Parameter, keep: Keep) -> nn.Parameter:
    if hasattr(parameter, _PART):
        return parameter
    whole = parameter.detach()
    found = nn.Parameter(whole.new_zeros(()).expand(whole.shape), parameter.requires_grad)
    setattr(found, _LOADED, True)
    setattr(found, _PART, keep(whole))
    return found


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
