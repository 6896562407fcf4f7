"""Which layers recompute their activations in the backward pass: what the job says, or as few as memory allows.

Called by trainer.py. A layer that recomputes keeps its inputs only and runs twice, dropout included with the same
random numbers, so results do not depend on the choice. Layers are chosen whole and evenly spread: that holds for
every architecture, engine and adapter, while choosing by operation depends on what each of them calls.

Peak of a rank, in bytes, when some layers recompute:

    weights and moments + the larger of
        what the layers hold + the larger of (the chunk of the loss, one layer's backward pass)
        the gradients of a step + the larger of (one layer's backward pass, the update of weights)
    + weights and gradients that FSDP2 has gathered at that time, and the weight that is in few bits otherwise

Gradients count in both where a step has several micro batches. docs/adr/0044 compares it with measured peaks.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from finetune_api.runtime.choices import Engine, Recompute, WeightFormat
from finetune_api.runtime.run_config import RunConfig
from finetune_api.runtime.zero import STAGES

from . import adapters, architecture, attention, chunked_loss, loss, model, quantised_base, saved, whole_modules
from .collectives import on_every_rank, on_rank_0
from .errors import ModelRefused
from .master import COMPUTE, computes_apart
from .mesh import RankMesh
from .optim import moment_bytes, step_bytes
from .quantised_layer import QuantisedLinear
from .saved import Saved

_log = logging.getLogger(__name__)

KEY = "hyperparameters.parallelism.activation_checkpointing"
MARGIN = 0.1
"""Share of the free memory that the estimate leaves: fragments, workspaces of kernels, buffers of collectives."""
LOSS_BYTES = 12
"""Of one logit of a chunk: its softmax, and two gradients of it, in fp32."""
_GATHER = (Engine.FSDP2, Engine.HSDP, Engine.ZERO3)
_GIB = 2**30


@dataclass(frozen=True)
class Fixed:
    """Bytes on a rank that do not depend on which layers recompute."""

    weights: int
    """And moments; as long as the run lasts."""
    gradients: int
    """Of a step."""
    accumulates: bool
    """Whether there are gradients while a forward pass runs."""
    loss: int
    """While the loss is computed."""
    gathered: int = 0
    """Parts of other ranks, while a layer is computed."""
    update: int = 0
    """Beside weights and gradients, while the optimizer updates them."""
    dequantised: int = 0
    """The largest weight that is stored in few bits, while a layer computes with it."""


@dataclass(frozen=True)
class Estimate:
    """How many layers have to recompute in the free memory of a device."""

    layers: int
    recomputed: int
    peak: int
    """Bytes, with that many."""
    free: int
    """Bytes, before anything of the run is there."""

    @property
    def fits(self) -> bool:
        return self.peak <= (1 - MARGIN) * self.free


def estimate(layers: Sequence[Saved], fixed: Fixed, free: int) -> Estimate:
    """The smallest number of layers that fits with the margin; all of them if none does."""
    tried = (Estimate(len(layers), n, peak(layers, n, fixed), free) for n in range(len(layers) + 1))
    return next(each for each in tried if each.fits or each.recomputed == each.layers)


def peak(layers: Sequence[Saved], recomputed: int, fixed: Fixed) -> int:
    """Bytes on a rank when `recomputed` of the layers recompute."""
    chosen, largest = evenly(recomputed, len(layers)), max(each.activations for each in layers)
    held = sum(each.inputs if i in chosen else each.activations for i, each in enumerate(layers))
    backward = largest * (2 if chosen else 1)  # gradients of activations; and the activations again
    begin = held + max(fixed.loss, backward) + (fixed.gradients if fixed.accumulates else 0)
    end = fixed.gradients + max(backward, fixed.update)
    return fixed.weights + max(begin, end) + fixed.gathered + fixed.dequantised


def evenly(count: int, total: int) -> frozenset[int]:
    """`count` of `total` numbers from 0, evenly spread."""
    return frozenset(i * total // count for i in range(count))


def asked(config: RunConfig) -> Recompute:
    """What the job says."""
    return config.recompute or (Recompute.FULL if config.activation_checkpointing else Recompute.AUTO)


def decide(folder: Path, config: RunConfig, mesh: RankMesh, longest: int) -> Recompute | int:
    """What the job says; a number of layers where it leaves that to the trainer. Collective.

    Called before the device has anything of the run. `longest`: tokens of the longest row.
    """
    wanted = asked(config)
    if wanted in (Recompute.SELECTIVE, Recompute.FULL):
        on_rank_0(lambda: _require_layers(outlined(folder, config), wanted))
    if wanted is not Recompute.AUTO:
        return wanted
    if mesh.rank_info.device.type != "cuda":
        return Recompute.NONE  # what a process may use of the memory of a machine is not known
    free = min(on_every_rank(lambda: torch.cuda.mem_get_info(mesh.rank_info.device)[0]))
    return on_rank_0(lambda: fewest(folder, config, mesh, longest, free))


def fewest(folder: Path, config: RunConfig, mesh: RankMesh, longest: int, free: int) -> int:
    """How many layers have to recompute in `free` bytes of a device; says so in the log."""
    outline = outlined(folder, config)
    found = layers(outline)
    if not found:
        _log.warning("Activations: nothing is recomputed, which %s cannot do.", _name(outline))
        return 0
    try:
        bytes_of_layers = count(outline, config.batch.per_device, longest)
    except Exception as error:  # noqa: BLE001 - of the architecture's own code, which a meta device may not suit
        _log.warning(_UNCOUNTED, len(found), _name(outline), f"{type(error).__name__}: {error}", KEY)
        return len(found)
    result = estimate(bytes_of_layers, fixed(outline, config, mesh, longest), free)
    _log.warning("%s", sentence(result, config.batch.per_device, longest))
    return result.recomputed


_UNCOUNTED = (
    "Activations: all %d layers are recomputed in the backward pass, because what %s saves could not be counted "
    "(%s); if memory is left, try %s: selective, then none."
)


def sentence(result: Estimate, rows: int, longest: int) -> str:
    """What was chosen, and why; with remedies if it does not fit."""
    all_or_some = {0: "none", result.layers: "all"}.get(result.recomputed, str(result.recomputed))
    size = f"{result.peak / _GIB:.1f} of {result.free / _GIB:.1f} GiB"
    what = f"Activations: {all_or_some} of {result.layers} layers are recomputed in the backward pass"
    if result.fits:
        return f"{what}; {rows} x {longest:,} tokens then take about {size} ({KEY}: auto)."
    return (
        f"{what}, and {rows} x {longest:,} tokens still take about {size}, too much with {MARGIN:.0%} in reserve; if "
        "memory runs out, lower hyperparameters.per_device_batch or hyperparameters.sequence_length, shard with "
        "hyperparameters.parallelism.fsdp, or add GPUs."
    )


def _require_layers(outline: nn.Module, how: Recompute) -> None:
    """Said before anything is loaded."""
    if not layers(outline):
        raise ModelRefused(f"{KEY}: {how}: {_name(outline)} cannot recompute its activations; set it to none")


def recompute(adapted: nn.Module, how: Recompute | int) -> None:
    """Let layers recompute in the backward pass."""
    found = layers(adapted)
    named = {Recompute.NONE: 0, Recompute.SELECTIVE: -(-len(found) // 2), Recompute.FULL: len(found)}
    number = how if isinstance(how, int) else named[how]
    if number == 0:
        return
    loss.causal(adapted).activation_checkpointing_enable()
    chosen = {found[i] for i in evenly(number, len(found))}
    for module in adapted.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = module in chosen


def layers(adapted: nn.Module) -> list[nn.Module]:
    """The layers of the language model that can recompute, none inside another."""
    base = loss.causal(adapted)
    found: dict[str, nn.Module] = {}
    others = tuple(f"{part}." for part in architecture.other_parts(base))
    for name, module in base.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, GradientCheckpointingLayer) and not inside and not name.startswith(others):
            found[name] = module
    return list(found.values()) if base.supports_gradient_checkpointing else []


def outlined(folder: Path, config: RunConfig) -> PreTrainedModel | PeftModel:
    """The model as it computes, without memory, on the meta device."""
    settings = copy.deepcopy(model.unloaded(folder).config)
    with torch.device("meta"):
        base = architecture.auto_class(settings).from_config(settings, dtype=COMPUTE[config.precision])
    architecture.freeze_other_parts(base)
    attention.replace(base)
    base.train()
    if config.quantisation is not None:
        quantised_base.quantise(base, config.quantisation, whole_modules.chosen(base, config.lora))
    adapted = base if config.lora is None else adapters.attach(base, config.lora)
    parameters = dict(adapted.named_parameters())
    for name in computes_apart(adapted, config.precision):
        parameters[name].data = parameters[name].data.to(COMPUTE[config.precision])
    return adapted


def require_quantised_to_compute(folder: Path, config: RunConfig) -> None:
    """Raises ModelRefused for an architecture that reads weights past the layers that store them in few bits.

    Without this check it would crash in its first step, or its first evaluation.
    """
    as_it_is = config.model_copy(update={"quantisation": None})
    found = _failure(outlined(folder, config))
    if found is not None and _failure(outlined(folder, as_it_is)) is None:
        raise ModelRefused(
            f"training.use_qlora: {_name(outlined(folder, config))} reads weights past the layers that quantise them "
            f"({type(found).__name__}: {found}); train adapters on the base as it is (training.mode: lora, "
            "use_qlora: false)"
        )


def _failure(outline: nn.Module) -> Exception | None:
    """What a forward pass without numbers raises, in training or in evaluation."""
    base = loss.causal(outline)
    try:
        for training in (True, False):
            base.train(training)
            with saved.AsOnGpu():
                base(input_ids=torch.zeros(1, 4, dtype=torch.int64, device="meta"), use_cache=False)
    except Exception as error:  # noqa: BLE001 - of the architecture's own code
        return error
    return None


def count(outline: nn.Module, rows: int, longest: int) -> list[Saved]:
    """What each layer of a model on the meta device saves for a micro batch."""
    base = loss.causal(outline)
    inputs = torch.zeros(rows, longest, dtype=torch.int64, device="meta")
    with saved.AsOnGpu():
        return saved.of_layers(base, layers(outline), lambda: base(input_ids=inputs, use_cache=False))


def fixed(outline: nn.Module, config: RunConfig, mesh: RankMesh, longest: int) -> Fixed:
    """From the table of bytes of a parameter in master.py."""
    ranks, compute = mesh.size("shard"), COMPUTE[config.precision].itemsize
    weights, gradients = (_of_zero if config.engine in STAGES else _of_shards)(outline, config, ranks)
    quantised = [module for module in outline.modules() if isinstance(module, QuantisedLinear)]
    base = loss.causal(outline)
    head: nn.Module = base.get_output_embeddings()  # type: ignore[no-untyped-call]
    vocabulary = base.config.get_text_config().vocab_size
    logits = min(chunked_loss.GPU_CHUNK, config.batch.per_device * longest * vocabulary)
    return Fixed(
        weights=weights + sum(b.nbytes for each in quantised for b in each.buffers()),
        gradients=gradients,
        update=step_bytes(config.optimizer),
        accumulates=config.batch.accumulation > 1,
        loss=logits * LOSS_BYTES + _numbers(head, trained=True) * (4 + compute),
        gathered=_gathered(outline, compute) if config.engine in _GATHER else 0,
        dequantised=max((each.in_features * each.out_features * compute for each in quantised), default=0),
    )


def _of_shards(outline: nn.Module, config: RunConfig, ranks: int) -> tuple[int, int]:
    """Bytes of weights with moments, and of gradients, on a rank that holds a part of each."""
    trained, compute = _numbers(outline, trained=True), COMPUTE[config.precision].itemsize
    of_trained = 4 + (compute if compute < 4 else 0) - (4 if config.weights is WeightFormat.BF16 else 0)
    moments = moment_bytes(outline, config.optimizer)
    return (trained * of_trained + moments + _frozen_bytes(outline)) // ranks, trained * 4 // ranks


def _of_zero(outline: nn.Module, config: RunConfig, ranks: int) -> tuple[int, int]:
    """The same, where the stage says what is in parts (docs/adr/0056)."""
    stage, trained = STAGES[config.engine], _numbers(outline, trained=True)
    computes_with = trained * COMPUTE[config.precision].itemsize + _frozen_bytes(outline)
    updates = trained * 4 + moment_bytes(outline, config.optimizer)
    return (
        computes_with // (ranks if stage == 3 else 1) + updates // ranks,
        trained * 4 // (1 if stage == 1 else ranks),
    )


def _frozen_bytes(outline: nn.Module) -> int:
    return sum(p.nbytes for p in outline.parameters() if not p.requires_grad)


def _gathered(outline: nn.Module, compute: int) -> int:
    """What is outside the layers, this layer and the next; and gradients of one, before and after the cast."""
    found = layers(outline)
    sizes = [sum(p.nbytes for p in each.parameters()) for each in found]
    layer, outside = max(sizes), sum(p.nbytes for p in outline.parameters()) - sum(sizes)
    in_layers = [_numbers(each, trained=True) for each in found]
    gradients = max(*in_layers, _numbers(outline, trained=True) - sum(in_layers)) * (4 + compute)
    return outside + 2 * layer + gradients


def _numbers(module: nn.Module, *, trained: bool) -> int:
    own: Sequence[Tensor] = [p for p in module.parameters() if p.requires_grad == trained]
    return sum(p.numel() for p in own)


def _name(adapted: nn.Module) -> str:
    return type(loss.causal(adapted)).__name__
