"""A LoRA adapter merged into its base: each adapted weight is W + scaling · B A, computed in fp32 and rounded once.

With DoRA the rows of that sum are scaled to the magnitudes that were trained. Weights of modules that were trained in
full take the places of those of the base.

Tensors have the names, shapes and formats of the base's files, and pass one by one from those into the new ones; what
is quantised there is read in bf16 (weights.py). The base is never built: transformers says, of a model without
memory, which tensors of the files a parameter is, and how an update of it is written there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.pytorch_utils import Conv1D

from finetune_api.runtime.choices import LoraBias
from finetune_api.runtime.protocol import MARKER
from finetune_tokens import folder as tokens

from . import (
    adapter_folder,
    architecture,
    biases,
    lora_files,
    model_export,
    sources,
    target_parameters,
    tensor_files,
    texts,
    token_rows,
    vocabulary,
    weights,
    whole_modules,
)
from . import model as base_model
from .adapter_folder import printable
from .errors import ModelRefused
from .export import ADAPTER, MERGED_SENTENCE
from .files import DISK, Files, require_space, storage_errors
from .lora_files import AdaptedLayer, SavedAdapter, SavedRows
from .model_export import Group
from .target_parameters import FusedFactors
from .tensor_files import Outline

OnProgress = Callable[[int], None]
"""Called with the number of bytes of a tensor that was written."""
_AT_ONCE = 1 << 18
"""Elements that are computed at a time."""
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab*")
_FLOATING = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


@dataclass(frozen=True)
class MergePlan:
    """How a model is merged, before any value is read."""

    base: Path
    model: PreTrainedModel
    """Without memory."""
    adapter: SavedAdapter
    outlines: Mapping[str, Outline]
    """Of all tensors, in the order in which they are written."""
    groups: Mapping[str, Group]
    """By the name of a tensor that changes: the parameters that it comes from."""
    stored: Mapping[str, str]
    """By the name that transformers gives such a tensor: its name in the files."""
    fused: Mapping[str, FusedFactors] = field(default_factory=dict)
    """By the name of a parameter of many matrices: its factors."""

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(each.nbytes for each in self.outlines.values())


def plan(base: Path, adapter: SavedAdapter) -> MergePlan:
    """`base`: the folder of the model. Raises ModelRefused, with names, if the adapter does not fit it."""
    tensor_files.require_known_formats(tensor_files.weight_files(base))
    model, outlines = base_model.unloaded(base), weights.outlines(base)
    _remember_conversions(model, outlines)
    outlines = _without_second_copies(model, outlines, adapter, base)
    fused = target_parameters.in_model(model, adapter, partial(_refused, adapter, base))
    changed = _weights(model, adapter, base).keys() | fused.keys() | _replaced(model, adapter, base)
    changed |= _with_rows(model, adapter, base)
    groups: dict[str, Group] = {}
    stored: dict[str, str] = {}
    for group in model_export.groups(model, model_export.weights_of(model), base):
        if not changed.isdisjoint(group.parameters):
            names = {name: _in_files(model, name, each, outlines, base) for name, each in group.tensors.items()}
            stored |= names
            groups |= dict.fromkeys(names.values(), group)
    widest_first = sorted(outlines.items(), key=lambda each: -each[1].dtype.itemsize)  # so that each is aligned
    return MergePlan(base, model, adapter, dict(widest_first), groups, stored, fused)


def rows_needed(adapter: SavedAdapter, base: Path, rows: int) -> int:
    """Rows of the embedding that an adapter was trained on, of a base that has `rows`, with the tokens added to it.

    As many as it has in full, or up to the last token of which it has rows, where it has those of all new ones.
    """
    if not adapter.rows and not adapter.whole:
        return rows
    ends = [f"{name}.weight" for name in architecture.ends(base_model.unloaded(base))]
    whole = [adapter.whole[name].shape[0] for name in ends if name in adapter.whole and adapter.whole[name].shape]
    new = sorted({each for saved in adapter.rows.values() for each in saved.ids if each >= rows})
    follow = bool(new) and new[0] in (rows, vocabulary.next_number(base))
    follow = follow and new == list(range(new[0], new[0] + len(new)))
    return max([rows, *whole, *(number + 1 for number in new if follow)])


def write(folder: Path, planned: MergePlan, files: Files = DISK, on_progress: OnProgress = lambda _: None) -> None:
    """Write the merged model into an empty folder.

    Raises StorageFailed, also before anything is written if the volume is too small.
    """
    tokenizer = _tokenizer(planned)
    require_space(folder, planned.size, "free space there, or choose another folder")
    parts = tensor_files.shards(planned.outlines)
    with (
        weights.opened(planned.base, sources.quantisation(planned.base)) as stored,
        planned.adapter.opened() as factors,
        closing(tensor_files.written(folder, "model", parts, files)) as writing,
    ):
        updates = _Updates(planned, factors)
        with storage_errors(folder):
            next(writing)
        for name in planned.outlines:
            value = (name, updates.added(name, stored[name][...]))
            with storage_errors(folder):
                writing.send(value)
            del value
            on_progress(planned.outlines[name].nbytes)
    texts.copy(planned.base, folder, configs=True, tokenizer=tokenizer)
    with storage_errors(folder):
        (folder / "README.md").write_text(_card(planned), encoding="utf-8")


def _tokenizer(planned: MergePlan) -> Path:
    """The adapter's own, where it has a whole one: it was trained with that template. Raises TokenizerRefused."""
    own = planned.adapter.folder
    if not (own / "tokenizer_config.json").is_file() or not any(next(own.glob(n), None) for n in _VOCABULARIES):
        return planned.base
    sources.require_own_texts(own)
    tokens.document(own / "tokenizer_config.json")
    if (own / "tokenizer.json").is_file():
        tokens.tokenizer(own)
    return own


def _card(planned: MergePlan) -> str:
    """Content of the README.md: what was merged, and what the result of a run says of itself."""
    adapter = planned.adapter
    name, readme = adapter.base_name or planned.base.name, adapter.folder / "README.md"
    full = f"{len(adapter.whole):,} tensors were trained in full. " * bool(adapter.whole)
    layers = len(adapter.layers) + len(adapter.parameters)
    scaled = ", its rows scaled to their magnitudes (DoRA)" * any(each.dora for each in adapter.layers.values())
    own = ""
    if (adapter.folder / MARKER).is_file() and readme.is_file() and not readme.is_symlink():
        text = readme.read_text(encoding="utf-8", errors="replace").replace(MERGED_SENTENCE, "")
        own = text.rpartition("\n# ")[2].partition("\n")[2]
    return (
        f"---\nbase_model: {json.dumps(name)}\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n"
        f"# {name} with a LoRA adapter merged into its weights\n\n"
        f"{layers:,} layers have the weight W + scaling · B A{scaled}, computed in fp32 and rounded "
        f"once to its format. {full}".rstrip()
        + f"\n{own}"
    )


def _require_finite(planned: MergePlan, name: str, tensor: Tensor) -> None:
    if not tensor.isfinite().all():
        raise ModelRefused(
            f"adapter {planned.adapter.folder}: merged into {planned.base}, {name} has numbers that are not finite "
            f"in {tensor.dtype}; if the adapter's own numbers are finite, merge it into a copy of the base in "
            "bfloat16, which has larger ones, or load it with PEFT; else train it again"
        )


def require_possible(base: Path, adapted: PeftModel) -> None:
    """Raises ModelRefused if the adapter of a run could not be merged at its end."""
    run = Path("of this run")
    state = whole_modules.state(adapted)
    whole = {lora_files.in_model(name): Outline(t.dtype, tuple(t.shape)) for name, t in state.items()}
    rows = {
        name: SavedRows(tuple(each.ids.tolist()), each.trainable_tokens_delta.shape[1])
        for name, each in token_rows.of(adapted.get_base_model()).items()
    }
    names = [
        name
        for name, p in adapted.named_parameters()
        if p.requires_grad and name not in state and not name.endswith(lora_files.ROWS)
    ]
    parameters = target_parameters.saved(adapted.get_base_model(), ADAPTER)
    modules: Any = {
        n: m for n, m in adapted.get_base_model().named_modules() if hasattr(m, "lora_A") and n not in parameters
    }
    layers = {
        n: AdaptedLayer(
            m.in_features,
            m.out_features,
            m.r[ADAPTER],
            m.lora_alpha[ADAPTER],
            m.scaling[ADAPTER],
            ADAPTER in m.lora_magnitude_vector,
        )
        for n, m in modules.items()
    }
    try:
        saved = [
            n.replace(f".{ADAPTER}.", ".").replace("_magnitude_vector.weight", "_magnitude_vector") for n in names
        ]
        lora_files.require_factors(run, saved)
        config = adapted.peft_config[ADAPTER].to_dict()
        targets = tuple(config["target_parameters"] or ())
        plan(base, SavedAdapter(run, "", "", layers, whole, (), rows, parameters, targets, config))
    except ModelRefused as error:
        raise ModelRefused(f"output.merge: {error}; or remove output.merge") from error


def _remember_conversions(model: PreTrainedModel, names: Mapping[str, object]) -> None:
    """Note on `model` how loading these tensors would have named and converted them: what reverts it reads that."""
    conversions, known = get_model_conversion_mapping(model), model.state_dict()
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    for name in sorted(names, key=dot_natural_key):
        rename_source_key(name, renamings, converters, model.base_model_prefix, known)
    model._weight_conversions = [each for each in conversions if each.was_used()]  # type: ignore[assignment]  # noqa: SLF001


def _weights(model: PreTrainedModel, adapter: SavedAdapter, base: Path) -> dict[str, str]:
    """The parameters that change, and the layers of the adapter that they belong to."""
    linear = architecture.linear(model)
    tied = _ties(model)
    found = {}
    for name, layer in adapter.layers.items():
        module = linear.get(name)
        if module is None:
            raise _refused(adapter, base, f"it is for {name}, and the base has no linear layer of that name")
        shape, weight = _shape(module, layer), f"{name}.weight"
        if model.get_parameter(weight).shape != shape:
            raise _refused(
                adapter, base, f"for {name} it has {layer.inputs} inputs and {layer.outputs} outputs, and the base "
                f"has a weight of {_spelled(model.get_parameter(weight).shape)}",
            )  # fmt: skip
        if layer.dora and isinstance(module, Conv1D):
            raise ModelRefused(
                f"adapter {adapter.folder}: {name} has DoRA, and its weight is stored transposed in {base}, which is "
                "not merged; load the adapter with PEFT instead"
            )
        partner = tied.get(weight) or next((each for each, other in tied.items() if other == weight), None)
        if partner is not None:
            raise ModelRefused(
                f"adapter {adapter.folder}: {name} shares its weight with {partner} in {base}, which merging would "
                "change too; load the adapter with PEFT, or train without this layer (training.lora.target_modules)"
            )
        found[weight] = name
    return found


def _replaced(model: PreTrainedModel, adapter: SavedAdapter, base: Path) -> set[str]:
    """Parameters and buffers that the adapter has in full."""
    own_state = model.state_dict()
    for name, outline in adapter.whole.items():
        own = own_state.get(name)
        if own is None:
            raise _refused(adapter, base, f"it has {printable(name)} in full, and the base has nothing of that name")
        if own.is_floating_point() != outline.dtype.is_floating_point:
            raise _refused(adapter, base, f"{name} has the format {outline.dtype}, and {own.dtype} in the base")
        if tuple(own.shape) != outline.shape:
            raise _refused(
                adapter, base, f"{name} has {_spelled(outline.shape)} numbers, and {_spelled(own.shape)} in the base"
            )
    _require_all_in_full(model, own_state, adapter)
    for name, partner in _ties(model).items():
        if not {name, partner}.isdisjoint(adapter.whole) and not {name, partner} <= adapter.whole.keys():
            alone, other = (name, partner) if name in adapter.whole else (partner, name)
            raise ModelRefused(
                f"adapter {adapter.folder}: {alone} was trained apart from {other}, with which it shares a weight in "
                f"{base}; load the adapter with PEFT"
            )
    return {name for name in adapter.whole if name not in _ties(model)}


def _require_all_in_full(model: PreTrainedModel, own_state: Collection[str], adapter: SavedAdapter) -> None:
    """Raises ModelRefused for a file without something that the settings of the adapter ask for."""
    ends = tuple(adapter.modules)
    named = [name for name, _ in model.named_modules() if ends and name.endswith(ends)]
    of_bias = biases.trained(model, adapter.config.get("bias", LoraBias.NONE), adapter.layers)
    for key, names in (
        ("modules_to_save", [name for name in own_state if whole_modules.contains(named, name)]),
        ("bias", of_bias),
    ):
        if missing := [name for name in names if name not in adapter.whole]:
            raise ModelRefused(
                f"adapter {adapter.folder}: its {key} of {adapter_folder.CONFIG} asks for {missing[0]}, and its file "
                "does not have that; take both files from where the adapter is from"
            )


def _with_rows(model: PreTrainedModel, adapter: SavedAdapter, base: Path) -> set[str]:
    """Weights of embedding and head some of whose rows the adapter has."""
    ends, tied = architecture.ends(model), _ties(model)
    for name, rows in adapter.rows.items():
        if name not in ends:
            raise _refused(adapter, base, f"it has rows of {printable(name)}, neither embedding nor head of the base")
        own, last = ends[name].get_parameter("weight"), max(rows.ids, default=0)
        if rows.width != own.shape[1] or last >= len(own):
            raise _refused(
                adapter, base, f"of {name} it has rows up to {last}, of {rows.width} numbers, and the base has "
                f"{_spelled(own.shape)}",
            )  # fmt: skip
        if name in adapter.layers or f"{name}.weight" in adapter.whole:
            raise ModelRefused(f"adapter {adapter.folder}: it has rows of {name}, and all of it; load it with PEFT")
        if f"{name}.weight" in tied:
            raise ModelRefused(
                f"adapter {adapter.folder}: rows of {name} were trained apart from those of "
                f"{tied[f'{name}.weight']}, with which it shares a weight in {base}; load the adapter with PEFT"
            )
    named = adapter_folder.token_ids(adapter.folder, adapter.config)
    for name, module in ends.items():
        partner = tied.get(f"{name}.weight", "").removesuffix(".weight")
        if (
            adapter_folder.ids_of(named, name, module is model.get_input_embeddings())
            and not {name, partner} & adapter.rows.keys()
        ):
            raise ModelRefused(
                f"adapter {adapter.folder}: its trainable_token_indices name {name}, and its file has no rows of "
                "that; take both files from where the adapter is from"
            )
    return {f"{name}.weight" for name in adapter.rows}


def _without_second_copies(
    model: PreTrainedModel, outlines: Mapping[str, Outline], adapter: SavedAdapter, base: Path
) -> dict[str, Outline]:
    """Without the second copies that files may have of a shared weight that the adapter has in full, or rows of: of
    two that differed, the merged model would have both."""
    second = {
        name: partner for name, partner in _ties(model).items()
        if name in outlines and partner in outlines
        and (partner in adapter.whole or partner.removesuffix(".weight") in adapter.rows)
    }  # fmt: skip
    if second:
        with weights.opened(base, sources.quantisation(base)) as stored:
            for name, partner in second.items():
                if not torch.equal(stored[name][...], stored[partner][...]):
                    raise ModelRefused(
                        f"model {base}: {name} and {partner} are one weight by config.json, and two in the files; "
                        "set tie_word_embeddings there to false"
                    )
    return {name: outline for name, outline in outlines.items() if name not in second}


def _ties(model: PreTrainedModel) -> Mapping[str, str]:
    """Parameters that are not in the files, and those that they are tied to."""
    return getattr(model, "all_tied_weights_keys", {})


def _shape(module: nn.Module, layer: AdaptedLayer) -> torch.Size:
    transposed = isinstance(module, Conv1D)
    return torch.Size((layer.inputs, layer.outputs) if transposed else (layer.outputs, layer.inputs))


def _in_files(model: PreTrainedModel, name: str, outline: Outline, stored: Mapping[str, Outline], base: Path) -> str:
    """What transformers calls `name` has another prefix in the files of a model that was saved without its head."""
    prefix = f"{model.base_model_prefix}."
    for each in (name, name.removeprefix(prefix), prefix + name):
        if each in stored and stored[each].shape == outline.shape:
            if stored[each].dtype not in _FLOATING:
                raise ModelRefused(
                    f"model {base}: {each} has the format {stored[each].dtype}, which nothing can be added to; save "
                    "the model again in bfloat16 or float32: model.save_pretrained(folder)"
                )
            return each
    raise ModelRefused(f"model {base}: the weight files have no {name} of {_spelled(outline.shape)}; save the model "
                       "again with model.save_pretrained(folder)")  # fmt: skip


def _refused(adapter: SavedAdapter, base: Path, what: str) -> ModelRefused:
    trained = f", {adapter.base}" if adapter.base else ""
    return ModelRefused(
        f"adapter {adapter.folder} does not fit the base {base}: {what}; merge it into the model that it was trained "
        f"on{trained}"
    )


def _spelled(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


class _Updates:
    """What is added to the tensors of the files. Held are those of one group at a time."""

    def __init__(self, planned: MergePlan, factors: Mapping[str, Any]) -> None:
        self._planned, self._factors = planned, factors
        self._ready: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._values: dict[str, tuple[Tensor, Tensor | None]] = {}
        """What tensors are replaced with, and a mask, 1 where they are, if not everywhere."""

    def added(self, name: str, weight: Tensor) -> Tensor:
        """A tensor of the files as it is in the merged model."""
        if name not in self._planned.groups:
            return weight
        module = self._planned.groups[name].parameters[0].removesuffix(".weight")
        if rows := self._planned.adapter.rows.get(module):
            return self._with_rows(name, weight, rows, module)
        whole = self._planned.adapter.whole
        if not whole.keys().isdisjoint(self._planned.groups[name].parameters):
            weight = self._with_whole(name, weight)
        if whole.keys() >= set(self._planned.groups[name].parameters):
            return weight
        update, magnitudes = self._take(name)
        return _merged(weight, update, magnitudes, partial(_require_finite, self._planned, name))

    def _with_whole(self, name: str, weight: Tensor) -> Tensor:
        """A tensor of the files, with what the adapter has in full of it in its places."""
        if name not in self._values:
            group, whole = self._planned.groups[name], self._planned.adapter.whole
            values, masks = self._converted(group, self._value), dict[str, Tensor]()
            if not whole.keys() >= set(group.parameters):
                masks = self._converted(group, lambda each: self._full(each, float(each in whole)))
            self._values |= {each: (value, masks.get(each)) for each, value in values.items()}
        value, mask = self._values.pop(name)
        replaced = (value if mask is None else torch.where(mask.bool(), value, weight)).to(weight.dtype)
        _require_finite(self._planned, name, replaced)
        return replaced

    def _with_rows(self, name: str, weight: Tensor, rows: SavedRows, module: str) -> Tensor:
        changed = weight.clone()
        changed[list(rows.ids)] = lora_files.rows(self._factors, module).to(weight.dtype)
        _require_finite(self._planned, name, changed[list(rows.ids)])
        return changed

    def _value(self, parameter: str) -> Tensor:
        """What the adapter has of it in full; zeros if nothing."""
        if parameter not in self._planned.adapter.whole:
            return self._full(parameter, 0.0)
        found = lora_files.value(self._factors, parameter)
        for name, partner in _ties(self._planned.model).items():
            if partner == parameter and not torch.equal(lora_files.value(self._factors, name), found):
                raise ModelRefused(
                    f"adapter {self._planned.adapter.folder}: {name} and {partner} are one weight in "
                    f"{self._planned.base}, and were trained apart; load the adapter with PEFT"
                )
        return found

    def _full(self, parameter: str, number: float) -> Tensor:
        return torch.full((), number).expand(self._planned.model.get_parameter_or_buffer(parameter).shape)

    def _take(self, name: str) -> tuple[Tensor, Tensor | None]:
        """What is added, in fp32, and with DoRA the length of each row afterwards, NaN for rows that keep theirs."""
        if name not in self._ready:
            group = self._planned.groups[name]
            # Conversions move numbers, so that of a sum is the sum of both.
            updates = self._converted(group, self._of_parameter)
            layers = [self._planned.adapter.layers.get(each.removesuffix(".weight")) for each in group.parameters]
            lengths: Mapping[str, Tensor] = {}
            if any(layer is not None and layer.dora for layer in layers):
                lengths = self._converted(group, self._lengths)
            self._ready |= {each: (update, self._rows(each, lengths)) for each, update in updates.items()}
        return self._ready.pop(name)

    def _converted(self, group: Group, of: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """By the names in the files; `of` has what is for a parameter."""
        found = revert_weight_conversion(self._planned.model, {each: of(each) for each in group.parameters})
        return {self._planned.stored[each]: found[each] for each in group.tensors}

    def _rows(self, name: str, lengths: Mapping[str, Tensor]) -> Tensor | None:
        if name not in lengths:
            return None
        whole, first = lengths[name], lengths[name][:, :1]
        if whole.stride(1) != 0 and not torch.equal(whole.nan_to_num(), first.nan_to_num().expand_as(whole)):
            raise ModelRefused(
                f"adapter {self._planned.adapter.folder}: the rows of layers with DoRA are not rows of {name} in "
                f"{self._planned.base}, which is not merged; load the adapter with PEFT instead"
            )
        return first.squeeze(1)

    def _lengths(self, parameter: str) -> Tensor:
        """m of a parameter, the same in all columns."""
        shape = self._planned.model.get_parameter_or_buffer(parameter).shape
        name = parameter.removesuffix(".weight")
        layer = self._planned.adapter.layers.get(name)
        if layer is None or not layer.dora:
            return torch.full((1, 1), torch.nan).expand(shape)
        found = lora_files.magnitudes(self._factors, name).float()
        _require_finite(self._planned, f"{name}, by its magnitudes,", found)
        return found[:, None].expand(shape)

    def _of_parameter(self, parameter: str) -> Tensor:
        if parameter in self._planned.fused:
            return target_parameters.update(self._factors, self._planned.fused[parameter])
        name = parameter.removesuffix(".weight")
        layer = self._planned.adapter.layers.get(name)
        if layer is None:
            return torch.zeros(self._planned.model.get_parameter_or_buffer(parameter).shape)
        a, b = (each.float() for each in lora_files.factors(self._factors, name))
        transposed = isinstance(self._planned.model.get_submodule(name), Conv1D)
        product = a.t() @ b.t() if transposed else b @ a
        return product.mul_(layer.scaling)


def _merged(weight: Tensor, update: Tensor, lengths: Tensor | None, check: Callable[[Tensor], None]) -> Tensor:
    """The sum, rounded once to the format of `weight`, to the nearest; `check` is called with its parts."""
    sums = torch.empty_like(weight)
    wide = torch.promote_types(weight.dtype, torch.float32)
    rows = max(1, _AT_ONCE // max(1, weight[:1].numel()))
    for part in (slice(start, start + rows) for start in range(0, len(weight), rows)):
        exact = weight[part].to(wide) + update[part]
        if lengths is not None:
            factors = lengths[part] / torch.linalg.vector_norm(exact, dim=1)
            exact *= factors.where(~lengths[part].isnan(), torch.ones(()))[:, None]
        sums[part] = exact
        check(sums[part])
    return sums
