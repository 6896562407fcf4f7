"""Rows of the embedding and of the output head that are trained beside adapters: PEFT's trainable_token_indices.

PEFT copies the whole weight with these rows in it in every forward pass. Here they are looked up, and multiplied, by
themselves: the numbers are the same, and nothing of the size of the vocabulary is copied. In the file they have the
names that PEFT gives them. Called by adapters.py, model.py, export.py and lora_files.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from finetune_api.runtime.run_config import Lora

from . import architecture, lora_files, placeholders, vocabulary, whole_modules
from .adapter_folder import printable
from .errors import ModelRefused
from .lora_files import SavedAdapter

KEY = "training.lora.trainable_tokens"
_VALUES = "_values_of_token_rows"


class TokenRows(nn.Module):
    """Rows [tokens, hidden size] of one module, or of two that share a weight. Its name is PEFT's."""

    ids: Tensor

    def __init__(self, ids: Sequence[int], values: Tensor) -> None:
        super().__init__()
        self.trainable_tokens_delta = nn.Parameter(values)
        self.register_buffer("ids", torch.tensor(ids, device=values.device), persistent=False)

    def embedded(self, tokens: Tensor, others: Tensor, scale: Tensor | float | None) -> Tensor:
        """`others` [..., hidden size], which an embedding gives for `tokens` [...], with these rows in their places.

        `scale`: what the embedding multiplies its rows with.
        """
        same = tokens.unsqueeze(-1).eq(self.ids)
        rows = functional.embedding(same.byte().argmax(-1), self.trainable_tokens_delta)
        if scale is not None:
            rows = rows * torch.as_tensor(scale, dtype=rows.dtype, device=rows.device)
        return torch.where(same.any(-1, keepdim=True), rows, others)

    def logits(self, hidden: Tensor, others: Tensor) -> Tensor:
        """`others` [..., vocabulary], which a head gives for `hidden` [..., hidden size], with those of these tokens.

        It is changed in place.
        """
        return others.index_copy_(-1, self.ids, functional.linear(hidden, self.trainable_tokens_delta))


class _Embedding(nn.Embedding):
    token_adapter: TokenRows

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        return self.token_adapter.embedded(input, super().forward(input), getattr(self, "embed_scale", None))


class _Head(nn.Linear):
    token_adapter: TokenRows

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        return self.token_adapter.logits(input, super().forward(input))


def chosen(
    model: PreTrainedModel, lora: Lora | None, whole: Collection[str] = (), targets: Collection[str] = ()
) -> dict[str, nn.Module]:
    """Embedding and output head by name, with rows to train. Raises ModelRefused where they have none of their own.

    `whole`: modules that are trained in full; `targets`: layers that get adapters.
    """
    if lora is None or not lora.token_ids:
        return {}
    named = architecture.ends(model)
    key = KEY if lora.trainable_tokens else "training.lora.from" if lora.source else vocabulary.KEY
    found = {name: module for name, module in named.items() if not whole_modules.contains(whole, name)}
    for name, module in named.items():
        if name not in found and lora.trainable_tokens:
            raise ModelRefused(
                f"{key}: {name} is trained in full (training.lora.modules_to_save), rows of it are no others; remove "
                "one of the two"
            )
        if name in found and name in targets:
            raise ModelRefused(
                f"{key}: {name} gets an adapter (training.lora.target_modules), and rows of it cannot be trained "
                f"beside that; leave {name} out of target_modules"
            )
        if name in found and getattr(module, "bias", None) is not None:
            raise ModelRefused(
                f"{key}: {name} has a bias, which PEFT would leave out beside rows of it; "
                f"train it in full (training.lora.modules_to_save: [{name}])"
            )
        if name in found and not _is_usual(module):
            raise ModelRefused(
                f"{key}: {name} of {model.config.model_type} is a {type(module).__name__}, of which no rows are "
                f"trained by themselves; train it in full (training.lora.modules_to_save: [{name}])"
            )
    rows = min((len(_weight(module)) for module in found.values()), default=0)
    if found and (beyond := [number for number in lora.token_ids if number >= rows]):
        what = f"training.lora.from: {lora.folder} has a row" if lora.source else f"{KEY}: the tokenizer has a number"
        raise ModelRefused(
            f"{what} for token {beyond[0]}, and job.model has {rows} rows; set data.added_tokens where its tokens "
            "were added, else take tokenizer and weights from the same model"
        )
    return found


def _is_usual(module: Any) -> bool:
    """Whether it looks its rows up, or multiplies them, and no more."""
    if isinstance(module, nn.Embedding):
        return type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")
    return type(module).forward is nn.Linear.forward


def _weight(module: nn.Module) -> nn.Parameter:
    return module.get_parameter("weight")


class RowsOfTokens:
    """Sees these rows while a model is loaded, of whose weights a rank keeps parts only."""

    def __init__(self, outline: PreTrainedModel, lora: Lora | None, whole: Collection[str]) -> None:
        """`outline`: the model without memory; `whole`: modules that are trained in full."""
        self._weights = {f"{name}.weight" for name in chosen(outline, lora, whole)}
        self._ids = list(lora.token_ids) if lora is not None else []
        self._found: dict[str, Tensor] = {}

    def see(self, name: str, weight: Tensor) -> None:
        if name in self._weights:
            self._found[name] = weight[self._ids].to(torch.promote_types(weight.dtype, torch.float32), copy=True)

    def give(self, model: PreTrainedModel) -> None:
        """Leave them at the modules of `model`, until `train` takes them."""
        by_parameter = {model.get_parameter(name): values for name, values in self._found.items()}
        for name in self._weights:
            module = model.get_submodule(name.removesuffix(".weight"))
            setattr(module, _VALUES, by_parameter[_weight(module)])


def train(modules: Mapping[str, nn.Module], ids: Sequence[int]) -> dict[str, list[int]]:
    """Let the rows `ids` of these modules be trained. Returns PEFT's trainable_token_indices."""
    rows: dict[nn.Parameter, TokenRows] = {}
    named: dict[str, list[int]] = {}
    for name, module in modules.items():
        weight, values = _weight(module), vars(module).pop(_VALUES, None)
        if weight not in rows:
            if values is None:
                assert not placeholders.has_part(weight), "a placeholder has no rows"
                values = weight.detach()[list(ids)].to(torch.promote_types(weight.dtype, torch.float32))
            rows[weight], named[name] = TokenRows(ids, values), list(ids)
        mixed_in: Any = _Embedding if isinstance(module, nn.Embedding) else _Head
        module.__class__ = type(type(module).__name__, (mixed_in, type(module)), {})
        module.token_adapter = rows[weight]
    return named


def of(model: nn.Module) -> dict[str, TokenRows]:
    """By the name of the module that they are rows of; once of two that share a weight."""
    ends = lora_files.ROWS.rpartition(".")[0]
    return {name.removesuffix(ends): each for name, each in model.named_modules() if isinstance(each, TokenRows)}


def require_like(begun: SavedAdapter, modules: Mapping[str, nn.Module], ids: Sequence[int]) -> None:
    """Raises ModelRefused unless an earlier adapter has rows of exactly these modules, a shared weight once.

    And of these tokens: one that was added would stay as it is added without.
    """
    own = {_weight(module): name for name, module in reversed(list(modules.items()))}.values()
    what = f"training.lora.from: {begun.folder}"
    if set(own) != set(begun.rows):
        theirs, ours = (", ".join(sorted(map(printable, each))) or "no module" for each in (begun.rows, own))
        raise ModelRefused(f"{what} has rows of {theirs}, and here those of {ours} are trained; train it with PEFT")
    for name, saved in begun.rows.items():
        if missing := sorted(set(ids) - set(saved.ids)):
            raise ModelRefused(
                f"{vocabulary.KEY}: token {missing[0]} has no row of {name} in {begun.folder}, so it would stay as "
                "it is added; name the tokens that the run of that adapter has added, or leave training.lora.from out"
            )
        if saved.width != _weight(modules[name]).shape[1]:
            raise ModelRefused(
                f"{what} has rows of {name} with {saved.width} numbers, and job.model has "
                f"{_weight(modules[name]).shape[1]}; set job.model to the base that it was trained on"
            )


def take_values(model: PeftModel, begun: SavedAdapter, opened: Mapping[str, Any]) -> None:
    """Give the rows of `model` the values of an earlier adapter, or raise ModelRefused."""
    for name, rows in of(model.get_base_model()).items():
        value = lora_files.rows(opened, name)
        if not value.isfinite().all():
            raise ModelRefused(
                f"training.lora.from: {begun.folder}: rows of {name} are not finite; name another adapter"
            )
        rows.trainable_tokens_delta.copy_(value)


def summary(model: PeftModel) -> str:
    """What is trained of `model`, for the log; empty if no rows are."""
    found = of(model.get_base_model())
    count = len(next(iter(found.values())).ids) if found else 0
    return f"rows of {count} tokens are trained in {', '.join(architecture.patterns(found))}" if found else ""
