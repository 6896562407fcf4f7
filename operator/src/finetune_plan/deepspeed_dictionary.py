"""A DeepSpeed dictionary in a job, as other trainers take it: what each of its values is here.

Of the keys of https://www.deepspeed.ai/docs/config-json a value is another spelling of a key of the job, a size that
the engine takes as it is, the only value that there is here, or nothing to a run. Everything else is refused by its
path, and so is what contradicts the job. What is not there, or "auto", is as the job says elsewhere, or its default.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

from finetune_api.resource import defaults
from finetune_api.resource.aliases import PARALLELISM as P
from finetune_api.validation.predicates import find
from finetune_api.validation.problem import Problem
from finetune_api.validation.shape import quote
from finetune_api.validation.unknown import nearest

KEY = f"{P}.deepspeed_config"
AUTO = "auto"
_MOST = 256
"""Values of a dictionary: more than all that have a meaning."""
_EXPLAINED = 10
"""Unknown keys that are refused one by one: the nearest name of each is looked for."""
_LISTED = "Remove what docs/zero.md does not list."
_LONGEST = 60
"""Characters of a name in a path: more than those of all that have a meaning."""
_H = "hyperparameters"
_SWITCH, _STAGE, _FSDP = f"{P}.use_deepspeed", f"{P}.deepspeed_stage", f"{P}.fsdp"


class Spelling(NamedTuple):
    """Another spelling of a key of ours, some of whose values have other names."""

    key: str
    names: Mapping[Any, Any] = MappingProxyType({})


class EngineSize(NamedTuple):
    """A number that the engine takes, in a field of `finetune_api.runtime.run_config.ZeroSizes`."""

    name: str
    least: int
    stages: tuple[int, ...]
    """Those that have it."""


class Only(NamedTuple):
    """The only value, and why."""

    value: Any
    because: str


class Nothing(NamedTuple):
    """It changes nothing, and why."""

    because: str


Meaning = Spelling | EngineSize | Only | Nothing

_RECORDS = Nothing("the trainer has its own records")
_ENGINE = Nothing("the engine does what is possible in a stage")
_IN_FP32 = Only("fp32", "gradients are summed and communicated in fp32")
_OF_NVME = Nothing("nothing is moved to a disk")
_PINNED = Nothing("what is moved to the host is pinned there")
_WHOLE = Nothing("results are always whole")
_OF_FP16 = Nothing("it is for fp16")
_ADAMW = Nothing("the optimizer is torch's AdamW")
_NO_ZERO_PP = "ZeRO++ and MiCS are not supported yet"
_WARMUP = f"the rise of the learning rate is a share of all steps, in {_H}.warmup_ratio"
_Z = "zero_optimization"
_PREFIXES = ("stage3_", "")
"""DeepSpeed takes names of sizes of stage 3 with and without it."""
_OFFLOADS = ("offload_optimizer", "offload_param")
_OLD_OFFLOADS = MappingProxyType({True: "cpu", False: "none"})
_ADAMS = MappingProxyType({"Adam": "adamw", "AdamW": "adamw"})  # DeepSpeed's Adam decouples the decay, too
_SCHEDULES = MappingProxyType({"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"})

MEANINGS: Mapping[str, Meaning] = {
    "train_batch_size": Spelling(f"{_H}.global_batch"),
    "train_micro_batch_size_per_gpu": Spelling(f"{_H}.per_device_batch"),
    "gradient_accumulation_steps": Spelling(f"{_H}.gradient_accumulation_steps"),
    "gradient_clipping": Spelling(f"{_H}.max_grad_norm"),
    "bf16.enabled": Spelling(f"{P}.bf16"),
    "bfloat16.enabled": Spelling(f"{P}.bf16"),
    "fp16.enabled": Spelling(f"{P}.fp16"),
    "optimizer.type": Spelling(f"{_H}.optim", _ADAMS),
    "optimizer.params.lr": Spelling(f"{_H}.learning_rate"),
    "optimizer.params.weight_decay": Spelling(f"{_H}.weight_decay"),
    "optimizer.params.betas": Only([0.9, 0.999], "AdamW's betas have no key"),
    "optimizer.params.eps": Only(1e-8, "AdamW's epsilon has no key"),
    "optimizer.params.adam_w_mode": Only(True, "weight decay is decoupled"),
    "optimizer.params.torch_adam": _ADAMW,
    "scheduler.type": Spelling(f"{_H}.lr_scheduler_type", _SCHEDULES),
    "scheduler.params.warmup_max_lr": Spelling(f"{_H}.learning_rate"),
    "scheduler.params.warmup_min_lr": Only(0, "the learning rate rises from zero"),
    "scheduler.params.warmup_num_steps": Only(AUTO, _WARMUP),
    "scheduler.params.total_num_steps": Only(AUTO, f"the steps follow from {_H}.n_epochs or total_steps"),
    "scheduler.params.last_batch_iteration": Only(-1, "a run knows its place in the rows"),
    "scheduler.params.warmup_type": Only("linear", "the learning rate rises by the same amount in each step"),
    f"{_Z}.stage": Spelling(_STAGE),
    f"{_Z}.reduce_bucket_size": EngineSize("reduce_bucket", 1, (1, 2, 3)),
    f"{_Z}.allgather_bucket_size": EngineSize("allgather_bucket", 1, (1, 2)),
    **{f"{_Z}.{prefix}{key}": size for prefix in _PREFIXES for key, size in (
        ("prefetch_bucket_size", EngineSize("prefetch_bucket", 0, (3,))),
        ("param_persistence_threshold", EngineSize("persistence_threshold", 0, (3,))),
        ("max_live_parameters", EngineSize("max_live_parameters", 0, (3,))),
        ("max_reuse_distance", EngineSize("max_reuse_distance", 0, (3,))),
        ("gather_16bit_weights_on_model_save", _WHOLE),
    )},
    f"{_Z}.sub_group_size": EngineSize("sub_group", 0, (3,)),
    **dict.fromkeys((f"{_Z}.{key}" for key in (
        "overlap_comm", "contiguous_gradients", "reduce_scatter", "allgather_partitions", "round_robin_gradients",
        "use_multi_rank_bucket_allreduce", "ignore_unused_parameters", "memory_efficient_linear",
    )), _ENGINE),
    f"{_Z}.stage3_gather_fp16_weights_on_model_save": _WHOLE,
    f"{_Z}.elastic_checkpoint": Nothing("checkpoints go to any number of ranks"),
    f"{_Z}.load_from_fp32_weights": Nothing("runs start and go on with the fp32 weights"),
    **{f"{_Z}.{offload}.device": Spelling(f"{P}.{offload}_device") for offload in _OFFLOADS},
    f"{_Z}.cpu_offload": Spelling(f"{P}.offload_optimizer_device", _OLD_OFFLOADS),
    f"{_Z}.cpu_offload_param": Spelling(f"{P}.offload_param_device", _OLD_OFFLOADS),
    f"{_Z}.cpu_offload_use_pin_memory": _PINNED,
    **{f"{_Z}.{offload}.pin_memory": _PINNED for offload in _OFFLOADS},
    **{f"{_Z}.{offload}.{key}": _OF_NVME for offload in _OFFLOADS for key in (
        "buffer_count", "buffer_size", "fast_init", "max_in_cpu", "pipeline_read", "pipeline_write", "nvme_path",
    )},
    f"{_Z}.offload_optimizer.ratio": Only(1, "all of the optimizer's state is moved, or nothing"),
    f"{_Z}.offload_optimizer.super_offload": Only(False, "the optimizer is torch's AdamW"),
    f"{_Z}.offload_optimizer.cpuadam_cores_perc": Nothing("it is for super_offload"),
    f"{_Z}.zero_hpz_partition_size": Only(1, _NO_ZERO_PP),
    **dict.fromkeys((f"{_Z}.{key}" for key in (
        "zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights",
    )), Only(False, _NO_ZERO_PP)),
    f"{_Z}.mics_shard_size": Only(-1, _NO_ZERO_PP),
    "communication_data_type": _IN_FP32,
    "data_types.grad_accum_dtype": _IN_FP32,
    "prescale_gradients": Only(False, "gradients are divided by all targets"),
    "gradient_predivide_factor": Only(1, "gradients are divided by all targets"),
    "sparse_gradients": Only(False, "gradients are dense"),
    "amp.enabled": Only(False, "number formats are bf16 and fp16"),
    **dict.fromkeys((f"activation_checkpointing.{key}" for key in (
        "partition_activations", "cpu_checkpointing", "contiguous_memory_optimization", "number_checkpoints",
        "synchronize_checkpoint_boundary", "profile",
    )), Only(False, f"layers are recomputed by {P}.activation_checkpointing")),
    "compile.deepcompile": Only(False, "nothing is compiled"),
    **dict.fromkeys(("compile.disable", "compile.backend", "compile.kwargs"), Nothing("nothing is compiled")),
    **dict.fromkeys(("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"), _ADAMW),
    **dict.fromkeys((f"{section}.{key}" for section in ("fp16", "bf16") for key in (
        "auto_cast", "loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale",
        "consecutive_hysteresis",
    )), _OF_FP16),
    "bf16.check_grad_overflow": Nothing("numbers that are not finite always end a run"),
    "bf16.immediate_grad_update": _ENGINE,
    **dict.fromkeys(("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state"), _RECORDS),
    **{f"{key}.enabled": Only(False, _RECORDS.because) for key in (
        "tensorboard", "wandb", "csv_monitor", "comet", "flops_profiler", "comms_logger",
    )},
    **{f"{key}.enabled": Only(False, "it is not supported") for key in (
        "autotuning", "data_efficiency", "elasticity", "hybrid_engine", "torch_autocast",
    )},
}  # fmt: skip
"""By the path in the dictionary."""
_SECTIONS = frozenset(
    ".".join(names[: i + 1]) for path in MEANINGS for names in [path.split(".")] for i in range(len(names) - 1)
)
"""Paths of maps."""
_ENABLED = frozenset(
    path for path, meaning in MEANINGS.items() if path.endswith(".enabled") and isinstance(meaning, Only)
)
"""Paths of values that switch a section of one matter off."""


@dataclass(frozen=True)
class Translated:
    """A spec with what its dictionary means in the job's own keys."""

    spec: Mapping[str, Any]
    sources: Mapping[str, str] = field(default_factory=dict)
    """Keys of ours that the dictionary has filled -> the path of its value, both relative to spec."""
    without_effect: tuple[str, ...] = ()
    """Paths of values that change nothing."""
    problems: tuple[Problem, ...] = ()


def translated(spec: Mapping[str, Any]) -> Translated:
    """`spec` as it is stored. Keys of the job stay as they are."""
    dictionary = find(spec, KEY)
    if not isinstance(dictionary, Mapping):
        return Translated(spec)
    leaves = list(islice(_leaves(dictionary), _MOST + 1))
    if len(leaves) > _MOST:
        return Translated(spec, problems=(_too_many(),))
    off = _off(leaves)
    given = [_Given(path, value, MEANINGS.get(path)) for path, value in leaves if not _inside(path, off)]
    filled = _filled(spec, [each for each in given if isinstance(each.meaning, Spelling) and each.value != AUTO])
    if find(spec, _SWITCH) is None:
        filled.values[_SWITCH], filled.sources[_SWITCH] = True, KEY
    meant = _with(spec, filled.values)
    stage = find(meant, _STAGE)
    stage = defaults.DEEPSPEED_STAGE if stage is None else stage
    idle = (*(each.path for each in given if each.is_idle(stage)), *off)
    return Translated(
        meant,
        filled.sources,
        tuple(f"{KEY}.{path}" for path in idle),
        (
            *(problem for each in given for problem in _wrong(each)),
            *_unknown([each for each in given if each.meaning is None]),
            *_unlike(given),
            *filled.problems,
            *_excluding(spec, {each.path for each in given}),
        ),
    )


class _Given(NamedTuple):
    """A value of a dictionary."""

    path: str
    value: Any
    meaning: Meaning | None

    def is_idle(self, stage: Any) -> bool:
        """Whether it changes nothing in this stage."""
        meaning = self.meaning
        return isinstance(meaning, Nothing) or (isinstance(meaning, EngineSize) and stage not in meaning.stages)


def _off(leaves: list[tuple[str, Any]]) -> list[str]:
    """Sections that are switched off, and have more than that."""
    off = [path.removesuffix(".enabled") for path, value in leaves if path in _ENABLED and value is False]
    return [section for section in off if any(_inside(path, [section]) for path, _ in leaves)]


def _inside(path: str, sections: list[str]) -> bool:
    """Whether it is a value of these that has no meaning outside of them."""
    return path not in MEANINGS and path.startswith(tuple(f"{section}." for section in sections))


class _Filled(NamedTuple):
    values: dict[str, Any]
    sources: dict[str, str]
    problems: list[Problem]


def _filled(spec: Mapping[str, Any], given: list[_Given]) -> _Filled:
    """Keys of ours by the first value for each; one that contradicts it, or the job, is a problem."""
    found = _Filled({}, {}, [])
    for path, value, meaning in given:
        assert isinstance(meaning, Spelling)
        ours = meaning.names.get(value, value) if isinstance(value, str | bool) else value
        known = found.values.get(meaning.key, find(spec, meaning.key))
        if known is None:
            found.values[meaning.key], found.sources[meaning.key] = ours, f"{KEY}.{path}"
        elif _one_name(known) != _one_name(ours):
            found.problems.append(_contradiction(path, value, found.sources.get(meaning.key, meaning.key), known))
    return found


def _one_name(value: Any) -> Any:
    """The same for every name of torch's AdamW."""
    return "adamw" if value in ("adamw_torch", "adamw_torch_fused") else value


def _excluding(spec: Mapping[str, Any], paths: set[str]) -> Iterator[Problem]:
    """What cannot be beside a dictionary, or must be."""
    if find(spec, _SWITCH) is False:
        yield Problem(f"spec.{KEY}", "Contradiction", f"A DeepSpeed dictionary is given, and {_SWITCH} is false.",
                      f"Remove {KEY}, or set use_deepspeed to true.")  # fmt: skip
    elif find(spec, _FSDP) is True:
        yield Problem(f"spec.{KEY}", "EnginesExclude",
                      f"A DeepSpeed dictionary is given, and {_FSDP} is true; they shard the same states.",
                      f"Remove {KEY} and use_deepspeed, or set fsdp to false.")  # fmt: skip
    if f"{_Z}.stage" not in paths and find(spec, _STAGE) is None:
        yield Problem(f"spec.{KEY}", "Missing", f"The DeepSpeed dictionary has no {_Z}.stage and divides nothing.",
                      f"Set it, or {_STAGE}.")  # fmt: skip


def sizes(dictionary: Mapping[str, Any], stage: int) -> dict[str, int]:
    """Arguments of ZeroSizes that a stage has, of a dictionary without problems."""
    given = ((MEANINGS.get(path), value) for path, value in _leaves(dictionary) if value != AUTO)
    return {m.name: value for m, value in given if isinstance(m, EngineSize) and stage in m.stages}


def warms_up_otherwise(dictionary: Mapping[str, Any]) -> bool:
    """Whether a schedule leaves out how the learning rate rises: then not as in DeepSpeed."""
    given = dict(_leaves(dictionary))
    return given.get("scheduler.type", AUTO) != AUTO and "scheduler.params.warmup_type" not in given


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Values with their paths. An empty map is one where no map belongs."""
    for name, inner in value.items():
        at = f"{path}{_spelled(name)}"
        if isinstance(inner, Mapping) and (inner or at in _SECTIONS):
            yield from _leaves(inner, f"{at}.")
        else:
            yield at, inner


def _spelled(name: str) -> str:
    """In a path. DeepSpeed knows no name with a dot, which must not be taken for one of a map in a map."""
    short = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
    return json.dumps(short) if "." in short else short


def _wrong(given: _Given) -> Iterator[Problem]:
    """Another value than it can have."""
    path, value, meaning = given
    at, text = f"spec.{KEY}.{path}", quote(value)
    if isinstance(meaning, Only) and value not in (meaning.value, AUTO):
        yield Problem(at, "Unsupported", f"{path} is {text}: {meaning.because}.",
                      f"Remove it, or set it to {quote(meaning.value)}.")  # fmt: skip
    elif isinstance(meaning, EngineSize) and value != AUTO and not _is_size(value, meaning.least):
        yield Problem(at, "BadValue", f"{text} is not valid: it must be a whole number, {meaning.least} or more.",
                      "Correct it, or write auto.")  # fmt: skip


def _unknown(given: list[_Given]) -> Iterator[Problem]:
    """What has no meaning here."""
    for path, value, _ in given[:_EXPLAINED]:
        yield _not_a_map(path, value) if path in _SECTIONS else _no_meaning(path)
    if len(given) > _EXPLAINED:
        more = len(given) - _EXPLAINED
        yield Problem(f"spec.{KEY}", "UnknownKey",
                      f"{more} more keys of the DeepSpeed dictionary have no meaning here.", _LISTED)  # fmt: skip


def _not_a_map(path: str, value: Any) -> Problem:
    map_ = f"{{enabled: {json.dumps(value)}}}" if f"{path}.enabled" in MEANINGS and isinstance(value, bool) else "one"
    return Problem(f"spec.{KEY}.{path}", "BadValue", f"{quote(value)} is not valid: it must be a map.",
                   f"Write {map_}, or leave it out.")  # fmt: skip


def _no_meaning(path: str) -> Problem:
    near = nearest(path, tuple(MEANINGS))
    remedy = f"Did you mean {near}?" if near else _LISTED
    if '"' in path:
        remedy = "Names have no dots: write a map for each part."
    return Problem(
        f"spec.{KEY}.{path}", "UnknownKey", f"{path} of the DeepSpeed dictionary has no meaning here.", remedy
    )


def _unlike(given: list[_Given]) -> Iterator[Problem]:
    """Both names of a size, with other numbers."""
    first: dict[str, _Given] = {}
    for each in given:
        if isinstance(each.meaning, EngineSize):
            known = first.setdefault(each.meaning.name, each)
            if known.value != each.value:
                yield _contradiction(each.path, each.value, f"{KEY}.{known.path}", known.value)


def _is_size(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**53


def _contradiction(path: str, value: Any, key: str, given: Any) -> Problem:
    return Problem(f"spec.{KEY}.{path}", "Contradiction", f"{path} is {quote(value)}, and {key} is {quote(given)}.",
                   "Keep one of them, or write auto in the dictionary.")  # fmt: skip


def _too_many() -> Problem:
    return Problem(f"spec.{KEY}", "BadValue", f"The DeepSpeed dictionary has more than {_MOST} values.",
                   "Leave out what is not about training.")  # fmt: skip


def _with(spec: Mapping[str, Any], filled: Mapping[str, Any]) -> Mapping[str, Any]:
    """`spec` with these keys, whose sections may be absent."""
    found: Mapping[str, Any] = spec
    for key, value in filled.items():
        found = _set(found, key.split("."), value)
    return found


def _set(at: Any, names: list[str], value: Any) -> dict[str, Any]:
    name, *rest = names
    here = dict(at) if isinstance(at, Mapping) else {}
    return here | {name: _set(here.get(name), rest, value) if rest else value}
