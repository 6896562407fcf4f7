"""Counts the operators that make the CPU wait for a GPU; they are the same ones on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = ("_local_scalar_dense", "nonzero", "nonzero_static", "masked_select", "equal", "is_nonzero")


class Syncs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context that records every such operator by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in _WAITING or (name.startswith(("index", "_index_put")) and _by_mask(args)):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def of(work: Callable[[], object]) -> list[str]:
    """What `work` waits for."""
    syncs = Syncs()
    with syncs:
        work()
    return syncs.found


def _by_mask(args: tuple[Any, ...]) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)
