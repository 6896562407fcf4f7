"""Every decision about a job, with its reason. The one place where the parts of the plan meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from finetune_api.resource.key_table import Fate, declared
from finetune_api.runtime.capabilities import Combination, refuse
from finetune_api.runtime.choices import Device, Engine, Method, Precision
from finetune_api.validation import check
from finetune_api.validation.normalize import as_stored
from finetune_api.validation.predicates import find
from finetune_api.validation.problem import Problem

from .batch import Batch, resolve_batch
from .engine import resolve_engine, resolve_precision
from .facts import Note
from .layout import Layout, resolve_layout
from .method import resolve_method
from .notes import notes
from .settings import CPU, PlanSettings


@dataclass(frozen=True)
class Resolution:
    """What was decided. `problems` is empty, or the job is refused."""

    name: str
    spec: Mapping[str, Any]
    """The job's own words, without keys that have no value."""
    method: Method
    engine: Engine
    device: Device
    precision: Precision
    layout: Layout
    batch: Batch
    method_reason: str
    engine_reason: str
    notes: tuple[Note, ...]
    informational: tuple[str, ...]
    problems: tuple[Problem, ...]


def resolve(resource: Mapping[str, Any], settings: PlanSettings) -> Resolution:
    """Decide. The job must have passed finetune_api.validation.check."""
    spec: Mapping[str, Any] = as_stored(resource["spec"])
    device = Device.CPU if is_cpu(spec) else Device.CUDA
    method, method_reason = resolve_method(spec)
    layout = resolve_layout(spec)
    engine, engine_reason = resolve_engine(spec, method, layout.data_parallel, device)
    batch, batch_notes = resolve_batch(spec, layout.data_parallel)
    asked = Combination(method, engine, resolve_precision(spec, device), layout.tensor_parallel,
                        layout.pipeline_parallel)  # fmt: skip
    return Resolution(
        name=resource["metadata"]["name"],
        spec=spec,
        method=method,
        engine=engine,
        device=device,
        precision=asked.precision,
        layout=layout,
        batch=batch,
        method_reason=method_reason,
        engine_reason=engine_reason,
        notes=(*batch_notes, *notes(spec, method)),
        informational=informational(spec),
        problems=tuple(sorted([*_problems(spec, settings), *_unsupported(spec, asked)])),
    )


def is_cpu(spec: Mapping[str, Any]) -> bool:
    return str(find(spec, "compute.gpu_type")).upper() == CPU


def informational(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys of the job that change nothing."""
    return tuple(f"spec.{path}" for path in _idle_keys() if find(spec, path) is not None)


@cache
def _idle_keys() -> tuple[str, ...]:
    return tuple(key.path for key in declared() if key.fate is Fate.INFORMATIONAL)


def _problems(spec: Mapping[str, Any], settings: PlanSettings) -> list[Problem]:
    """What the settings of this cluster do not allow."""
    found = []
    kind = str(find(spec, "compute.gpu_type"))
    if not is_cpu(spec) and kind.upper() not in settings.accelerators:
        known = ", ".join([*sorted(settings.accelerators), CPU])
        found.append(Problem("spec.compute.gpu_type", "UnknownGpuType", f"{kind!r} is not an accelerator known here.",
                             f"Choose one of {known}, or have the administrator add it."))  # fmt: skip
    account = find(spec, "pods.serviceAccountName")
    if account and account not in settings.service_accounts:
        allowed = ", ".join(settings.service_accounts) or "none"
        found.append(Problem("spec.pods.serviceAccountName", "ServiceAccountNotAllowed",
                             f"{account!r} is not a service account that jobs may use.",
                             f"Leave it out, or have the administrator allow it. Allowed: {allowed}."))  # fmt: skip
    return found


def _unsupported(spec: Mapping[str, Any], asked: Combination) -> list[Problem]:
    """What the trainer of this version cannot do."""
    sentence = refuse(asked)
    if sentence is None:
        return []
    blame = ("hyperparameters.parallelism.use_deepspeed", "hyperparameters.parallelism.fp16", "training.use_qlora",
             "training.mode", "algorithm.variety", "hyperparameters.parallelism")  # fmt: skip
    path = next((p for p in blame if find(spec, p)), "hyperparameters")
    sentence = f"{sentence[0].upper()}{sentence[1:]}."
    return [Problem(f"spec.{path}", "Unsupported", sentence, "Choose one of the combinations listed.")]


@dataclass(frozen=True)
class Verdict:
    """`resolution` is there whenever the job makes sense, even if this version refuses it."""

    problems: tuple[Problem, ...]
    resolution: Resolution | None

    @property
    def valid(self) -> bool:
        return not self.problems


def validate(resource: Mapping[str, Any], settings: PlanSettings, *, cluster: bool = True) -> Verdict:
    """Judge a FinetuneJob given as plain data; `cluster` is whether it is meant for one."""
    found = check.problems(resource, cluster=cluster)
    if found and check.problems(resource, cluster=False):
        return Verdict(tuple(found), None)
    resolution = resolve(resource, settings)  # the rules about pods forbid no decision, so both are said at once
    return Verdict(tuple(sorted([*found, *resolution.problems])), resolution)
