"""What the layers of a model save in the forward pass for the backward pass, counted without a device.

The model is on the meta device: its tensors have shapes and no numbers. A forward pass over any number of tokens
takes a fraction of a second there, and autograd saves what it would save on a GPU. Called by activations.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter


@dataclass(frozen=True)
class Saved:
    """Bytes that one layer needs from its forward pass to its backward pass."""

    activations: int
    """What autograd saves; a storage that an earlier layer has saved too is not counted again."""
    inputs: int
    """What is needed to compute them again."""


def of_layers(model: nn.Module, layers: Sequence[nn.Module], forward: Callable[[], object]) -> list[Saved]:
    """What each of the `layers` of `model` saves in `forward`, which calls them one after another."""
    counter = _Counter(len(layers))
    for tensor in (*model.parameters(), *model.buffers()):
        counter.is_new(tensor)
    with _calls(layers, counter), saved_tensors_hooks(counter.save, lambda tensor: tensor):
        forward()
    return [Saved(*each) for each in zip(counter.activations, counter.inputs, strict=True)]


class AsOnGpu(TorchFunctionMode):
    """While it lasts, operations on the meta device save what the kernels of a GPU save."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        if func is functional.dropout:
            return _dropout(*args, **(kwargs or {}))
        if func is Tensor.__bool__:  # of what has no numbers: transformers asks whether positions are without gaps
            return True
        return func(*args, **(kwargs or {}))


class _Counter:
    """Bytes by layer."""

    def __init__(self, layers: int) -> None:
        self.activations, self.inputs = [0] * layers, [0] * layers
        self._current: int | None = None
        self._counted: dict[int, torch.UntypedStorage] = {}
        """By address. The storages are held, so that no other gets the address of one of them."""

    def is_new(self, tensor: Tensor) -> bool:
        known, storage = len(self._counted), tensor.untyped_storage()
        self._counted.setdefault(storage._cdata, storage)  # noqa: SLF001 - on the meta device all data_ptr() are 0
        return len(self._counted) > known

    def save(self, tensor: Tensor) -> Tensor:
        if self._current is not None and self.is_new(tensor):
            self.activations[self._current] += tensor.untyped_storage().nbytes()
        return tensor

    def enter(self, layer: int, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._current = layer
        hidden, *others = (each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor))
        own = [hidden, *(each for each in others if each.requires_grad)]  # layers share masks and positions
        self.inputs[layer] = sum(each.untyped_storage().nbytes() for each in own)

    def leave(self, *_: object) -> None:
        self._current = None


@contextmanager
def _calls(layers: Sequence[nn.Module], counter: _Counter) -> Iterator[None]:
    handles = [each.register_forward_hook(counter.leave) for each in layers]
    for i, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(partial(counter.enter, i), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _dropout(tensor: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """With a mask of a byte per element, where other devices save factors."""
    return torch.native_dropout(tensor, p, training)[0] if training and p > 0 else tensor


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **settings: Any) -> Tensor:
    """Fused: the meta device would compute it step by step, and save the scores of all pairs of tokens.

    torch takes flash attention where there is no mask, and else the kernel that knows masks.
    """
    dropout, scale = settings.get("dropout_p", 0.0), settings.get("scale")
    causal = settings.get("is_causal", False)
    if attn_mask is None:
        fused = torch.ops.aten._scaled_dot_product_flash_attention  # noqa: SLF001 - torch calls it, by the device
        return cast("Tensor", fused(query, key, value, dropout, causal, scale=scale)[0])
    if settings.get("enable_gqa"):
        key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value))
    bias = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    fused = torch.ops.aten._scaled_dot_product_efficient_attention  # noqa: SLF001
    return cast("Tensor", fused(query, key, value, bias, True, dropout, causal, scale=scale)[0])
