"""Every decision about a job, with its reason. The one place where the parts of the plan meet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api import capabilities
from finetune_api.keys import Fate, keys
from finetune_api.logic import find
from finetune_api.problems import Problem
from finetune_api.rules import LENGTH, LORA_TARGETS
from finetune_api.run import Device, Method, RunConfig
from finetune_api.v1alpha1 import FinetuneJob, Spec

from . import batch, engine, layout, method, runconfig
from .facts import Note, first, plain
from .settings import CPU, PlanSettings


@dataclass(frozen=True)
class Resolution:
    """What was decided. `problems` is empty, or the job is refused."""

    run_config: RunConfig
    method_reason: str
    engine_reason: str
    layout_reasons: tuple[str, ...]
    notes: tuple[Note, ...]
    informational: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def config_json(self) -> str:
        """The run configuration as the trainer gets it."""
        return self.run_config.model_dump_json()

    @property
    def digest(self) -> str:
        return "sha256:" + hashlib.sha256(self.config_json.encode()).hexdigest()


def resolve(job: FinetuneJob, settings: PlanSettings) -> Resolution:
    """Decide. The job must have passed finetune_api.check."""
    spec = plain(job)
    device = Device.CPU if is_cpu(spec) else Device.CUDA
    chosen, method_reason = method.resolve_method(spec)
    placed = layout.resolve_layout(spec)
    who, engine_reason = engine.resolve_engine(spec, chosen, placed.mesh, device)
    rows, batch_notes = batch.resolve_batch(spec, placed.mesh.data_parallel)
    precision = engine.resolve_precision(spec, device)
    config = runconfig.run_config(
        job.metadata.name,
        spec,
        (chosen, method.resolve_lora(spec, chosen), who, device, precision),
        placed.mesh,
        rows,
    )
    notes = [*batch_notes, *_notes(spec, chosen)]
    return Resolution(
        run_config=config,
        method_reason=method_reason,
        engine_reason=engine_reason,
        layout_reasons=placed.reasons,
        notes=tuple(notes),
        informational=informational(spec),
        problems=tuple(sorted([*_problems(spec, settings), *_unsupported(spec, config)])),
    )


def is_cpu(spec: Mapping[str, Any]) -> bool:
    return str(find(spec, "compute.gpu_type")).upper() == CPU


def informational(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys of the job that change nothing."""
    return tuple(
        k.path for k in keys(Spec)
        if k.fate is Fate.INFORMATIONAL and find(spec, k.path.removeprefix("spec.")) is not None
    )  # fmt: skip


def _notes(spec: Mapping[str, Any], chosen: Method) -> list[Note]:
    notes = [runconfig.validation_note(spec)]
    if not find(spec, "output.uri"):
        notes.append(Note("OutputNotKept", "output.uri is not given: on a cluster the result ends with the pods."))
    variety = find(spec, "algorithm.variety")
    if variety and variety != chosen:
        notes.append(Note("VarietyYields", f"algorithm.variety is {variety}, but other keys say {chosen}."))
    targets = first(spec, LORA_TARGETS)
    if chosen is Method.FFT and targets:
        notes.append(Note("AdaptersUnused", f"{targets.path} is given, but full finetuning has no adapters."))
    length, limit = first(spec, LENGTH), find(spec, "model_config.max_model_len")
    if length and limit and limit < length.value:
        notes.append(
            Note("LengthCapped", f"{length.path} is {length.value}, but model_config.max_model_len is {limit}.")
        )
    return [n for n in notes if n]


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


def _unsupported(spec: Mapping[str, Any], config: RunConfig) -> list[Problem]:
    """What the trainer of this version cannot do."""
    mesh = config.mesh
    asked = capabilities.Combination(config.method, config.engine, config.precision, mesh.tensor_parallel,
                                     mesh.pipeline_parallel)  # fmt: skip
    sentence = capabilities.refuse(asked)
    if sentence is None:
        return []
    blame = ("hyperparameters.parallelism.use_deepspeed", "hyperparameters.parallelism.fp16", "training.use_qlora",
             "training.mode", "algorithm.variety", "hyperparameters.parallelism")  # fmt: skip
    path = next((p for p in blame if find(spec, p)), "hyperparameters")
    sentence = f"{sentence[0].upper()}{sentence[1:]}."
    return [Problem(f"spec.{path}", "Unsupported", sentence, "Choose one of the combinations listed.")]
