"""The weights of a Hugging Face model folder, gathered, rounded and written one by one.

Rank 0 holds one parameter at a time, or the few that transformers stores as one. Names and shapes are those of the
base model's files: transformers converts them at load, and back here.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from finetune_api.runtime.run_config import RunConfig

from . import architecture, rounding, tensor_files
from . import weights as base_weights
from .collectives import on_rank_0, rank
from .files import Files, require_space, storage_errors
from .tensor_files import Outline

Writing = Generator[None, tuple[str, Tensor], None]
_LAYER = re.compile(r"(?:.*?\.)?\d+\.")


@dataclass(frozen=True)
class Group:
    """Parameters that become tensors of the files together; nearly always one parameter."""

    parameters: tuple[str, ...]
    dtype: torch.dtype
    tensors: Mapping[str, Outline]
    """In the files, by name."""


class Casting:
    """Rounds weights to the format in which they are published.

    In bf16 they have the bits with which a run that computes in bf16 has evaluated them at `step`.
    """

    def __init__(self, config: RunConfig, step: int) -> None:
        cpu = torch.device("cpu")
        self._to_bf16, self._to_nearest, self._step = rounding.to_bf16(config, cpu), rounding.NearestRounding(), step

    def __call__(self, name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
        if weight.dtype == dtype:
            return weight
        cast = self._to_bf16 if (weight.dtype, dtype) == (torch.float32, torch.bfloat16) else self._to_nearest
        target = torch.empty(weight.shape, dtype=dtype)
        cast.round(weight.contiguous(), target, name=name, start=0, step=self._step)
        return target


def write(
    folder: Path, model: PreTrainedModel, trained: Mapping[str, Tensor], base: Path, casting: Casting, files: Files
) -> None:
    """Write all tensors of `model`, with those of `trained` in their places, in the formats of the folder `base`.

    Collective. Raises StorageFailed on every rank.
    """
    weights = weights_of(model, trained)
    plan = on_rank_0(partial(groups, model, weights, base))
    parts = tensor_files.shards({name: each for group in plan for name, each in group.tensors.items()})
    with closing(tensor_files.written(folder, "model", parts, files)) as writing:
        on_rank_0(partial(_begin, folder, parts, writing))
        for group in plan:
            whole = {name: gathered(weights[name]) for name in group.parameters}
            on_rank_0(partial(_append, folder, model, group, whole, casting, writing))


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor, on the CPU of rank 0. Collective."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu() if rank() == 0 else full


def groups(model: PreTrainedModel, weights: Mapping[str, Tensor], base: Path) -> list[Group]:
    """How the tensors of the files come from `weights`, widest format first, so that each is aligned in its file."""
    empty = {name: torch.empty(weight.shape, device="meta") for name, weight in weights.items()}
    wanted = _shapes(revert_weight_conversion(model, dict(empty)))

    def converted(names: Iterable[str]) -> dict[str, tuple[int, ...]] | None:
        """Shapes of what comes of these parameters; None if they need others for it."""
        try:
            found = _shapes(revert_weight_conversion(model, {name: empty[name] for name in names}))
        except (ValueError, KeyError, IndexError, RuntimeError, TypeError):
            return None
        return found if found.items() <= wanted.items() else None

    known, usual = {n: each.dtype for n, each in base_weights.outlines(base).items()}, _usual_dtype(base)
    found = []
    for names in _together(empty, lambda name: converted([name]) is not None):
        shapes = converted(names)
        assert shapes is not None, f"transformers cannot convert {', '.join(names)} back"
        dtype = max((known.get(name, usual) for name in shapes), key=lambda each: each.itemsize)
        found.append(Group(names, dtype, {name: Outline(dtype, shape) for name, shape in shapes.items()}))
    written = Counter(name for group in found for name in group.tensors)
    assert written == Counter(wanted.keys()), f"not written once: {Counter(wanted.keys()) - written or written}"
    return sorted(found, key=lambda group: -group.dtype.itemsize)


def _together(names: Iterable[str], alone: Callable[[str], bool]) -> list[tuple[str, ...]]:
    """Each name that is converted alone by itself, and of each layer those that are not."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        layer = _LAYER.match(name)
        found[name if alone(name) or layer is None else layer[0]].append(name)
    return [tuple(group) for group in found.values()]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _begin(folder: Path, parts: Sequence[Mapping[str, Outline]], writing: Writing) -> None:
    require_space(folder, sum(each.nbytes for part in parts for each in part.values()))
    with storage_errors(folder):
        next(writing)


def _append(
    folder: Path, model: PreTrainedModel, group: Group, whole: dict[str, Tensor], casting: Casting, writing: Writing
) -> None:
    """Write the tensors of a group; `whole` is emptied, so that nothing is held twice."""
    cast = {name: casting(name, whole.pop(name), group.dtype) for name in group.parameters}
    tensors = revert_weight_conversion(model, cast)
    with storage_errors(folder):
        for name in group.tensors:
            writing.send((name, tensors[name]))


def weights_of(model: PreTrainedModel, trained: Mapping[str, Tensor] = MappingProxyType({})) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; of tied weights the one that loading ties the others to."""
    buffers = dict(model.named_buffers())
    kept = {name: tensor for name, tensor in model.state_dict().items() if name in buffers}
    kept |= architecture.exact_buffers(model)
    weights = dict(model.named_parameters()) | kept | dict(trained)
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", {})
    return {name: tensor for name, tensor in weights.items() if tied.get(name) not in weights}


def _usual_dtype(base: Path) -> torch.dtype:
    """dtype of the base model in its config.json; fp32 if that has none."""
    config = json.loads((base / "config.json").read_bytes())
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    assert isinstance(dtype, torch.dtype), f"{base}/config.json has the dtype {name!r}"
    return dtype
