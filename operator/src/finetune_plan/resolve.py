"""Every decision about a job, with its reason. The one place where the parts of the plan meet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from finetune_api.runtime import zero
from finetune_api.runtime.capabilities import Combination, refuse
from finetune_api.runtime.choices import BaseFormat, Device, Engine, Method, Precision, WeightFormat
from finetune_api.runtime.patterns import end_of_name, is_pattern, whole_name
from finetune_api.runtime.protocol import RESULT
from finetune_api.validation import check, uris
from finetune_api.validation.normalize import as_stored
from finetune_api.validation.problem import Problem
from finetune_api.validation.shape import quote
from finetune_api.validation.unknown import nearest

from . import deepspeed_dictionary, job_settings, targets
from .batch import BatchSize, resolve_batch
from .engine import Base, resolve_engine, resolve_precision
from .job_settings import JobSettings, LoraSettings, MethodSettings, Setting
from .layout import Layout, resolve_layout
from .method import resolve_method
from .mounts import mount
from .network import UNDECIDED, ResolvedNetwork, needs_evidence, network_notes, resolve_network
from .network_evidence import Nodes
from .notes import Note, notes
from .settings import CPU, PlanSettings

if TYPE_CHECKING:
    from finetune_api.runtime.run_config import RunConfig

ABOUT_PODS = {"BadQuantity", "ForbiddenVariable", "ReservedAnnotation"}
"""Reasons of problems that affect no decision."""


@dataclass(frozen=True)
class Resolution:
    """What was decided. `problems` is empty, or the job is refused."""

    job: JobSettings
    method: Method
    engine: Engine
    device: Device
    precision: Precision
    layout: Layout
    batch: BatchSize
    network: ResolvedNetwork
    method_reason: str
    engine_reason: str
    notes: tuple[Note, ...]
    problems: tuple[Problem, ...]

    @cached_property
    def run_config(self) -> RunConfig:
        """The run configuration. Built when it is asked for: `finetune validate` answers without its models."""
        from .runconfig import run_config  # noqa: PLC0415

        return run_config(self)

    @cached_property
    def config_json(self) -> str:
        """The document that the trainer gets."""
        return self.run_config.document()


def resolve(
    resource: Mapping[str, Any],
    settings: PlanSettings,
    *,
    cluster: bool = True,
    pinned_network: str = "",
    nodes: Nodes | None = None,
) -> Resolution:
    """Decide. The job must have passed finetune_api.validation.check. For the keywords see validate."""
    job = job_settings.read(resource)
    device = _device(job)
    method, method_reason = resolve_method(job.method, job.lora)
    layout = resolve_layout(job.layout)
    precision = resolve_precision(job.engine, device)
    accelerator = settings.accelerators.get(job.gpu_type.value.upper())
    stored = BaseFormat(job.quantization.format.value) if method is Method.QLORA else precision
    whole = job.lora.modules_to_save
    base = Base(
        job.model.value, stored, accelerator.memory_gib if accelerator else None, whole.key if whole.value else ""
    )
    engine, engine_reason = resolve_engine(job.engine, method, layout, device, base)
    batch, batch_notes = resolve_batch(job.batch, layout.data_parallel)
    asked = Combination(method, engine, precision, layout.tensor_parallel, layout.pipeline_parallel)
    network, obstacles = resolve_network(job, layout, device, settings, pinned=pinned_network, nodes=nodes)
    found = [
        *_problems(job, settings),
        *(obstacles if cluster else ()),
        *_unsupported(job, asked),
        *_contradictions(job, method, method_reason),
    ]
    decided = Resolution(
        job=job,
        method=method,
        engine=engine,
        device=device,
        precision=asked.precision,
        layout=layout,
        batch=batch,
        network=network,
        method_reason=method_reason,
        engine_reason=engine_reason,
        notes=(
            *batch_notes,
            *network_notes(job.pods.network_profile, network),
            *notes(job, method, asked.precision, device),
        ),
        problems=(),
    )
    return replace(decided, problems=tuple(sorted([*found, *_absent_with_zero(decided)])))


def _device(job: JobSettings) -> Device:
    return Device.CPU if is_cpu(job) else Device.CUDA


def is_cpu(job: JobSettings) -> bool:
    return job.gpu_type.value.upper() == CPU


def _nearest_kind(given: str, known: tuple[str, ...]) -> str | None:
    """H100 for H100-80GB, which is spelled more like another GPU."""
    same = tuple(kind for kind in known if kind.startswith(given) or given.startswith(kind))
    return nearest(given, same) or max(same, key=len, default=nearest(given, known))


def _problems(job: JobSettings, settings: PlanSettings) -> list[Problem]:
    """What the settings of this cluster do not allow."""
    found = []
    kind = job.gpu_type.value
    if not is_cpu(job) and kind.upper() not in settings.accelerators:
        known = (*sorted(settings.accelerators), CPU)
        near = _nearest_kind(kind.upper(), known)
        found.append(Problem("spec.compute.gpu_type", "UnknownGpuType", f"{kind!r} is not an accelerator known here.",
                             (f"Did you mean {near}? " if near else "")
                             + f"Choose one of {', '.join(known)}, or have the administrator add it."))  # fmt: skip
    account = job.pods.service_account.value
    if account and account not in settings.service_accounts:
        allowed = ", ".join(settings.service_accounts) or "none"
        found.append(Problem("spec.pods.serviceAccountName", "ServiceAccountNotAllowed",
                             f"{account!r} is not a service account that jobs may use.",
                             f"Leave it out, or have the administrator allow it. Allowed: {allowed}."))  # fmt: skip
    return found


def _unsupported(job: JobSettings, asked: Combination) -> list[Problem]:
    """What the trainer of this version cannot do."""
    sentence = refuse(asked)
    if sentence is None:
        return []
    engine, method = job.engine, job.method
    axes = [size for size in (job.layout.tensor, job.layout.pipeline) if size.value > 1]
    related: tuple[Setting[Any], ...] = (
        *axes, engine.use_deepspeed, method.use_qlora, method.mode, method.variety, engine.section,
    )  # fmt: skip
    path = next((setting.key for setting in related if setting.value), "hyperparameters")
    sentence = f"{sentence[0].upper()}{sentence[1:]}."
    remedy = _WITHOUT.get(path.rpartition(".")[2], "Choose one of the combinations listed.")
    return [Problem(f"spec.{path}", "Unsupported", sentence, remedy)]


def _absent_with_zero(decided: Resolution) -> Iterator[Problem]:
    if decided.engine not in zero.STAGES and not decided.job.engine.offloads:
        return
    sources = decided.job.sources
    stage = sources.get(zero.STAGE, zero.STAGE)
    for each in zero.absent(decided.run_config):
        key, instead = sources.get(each.key, each.key), each.instead.replace(zero.STAGE, stage)
        yield Problem(f"spec.{key}", "Unsupported",
                      f"{key} is {each.value}, which this version does not have {each.where}: {each.reason}.",
                      f"Leave it out, or {instead}.")  # fmt: skip


_SHARDS = "hyperparameters.parallelism.fsdp: true shards the model."
_WITHOUT = {
    "use_deepspeed": f"Set it to false; {_SHARDS}",
    "deepspeed_config": f"Remove it; {_SHARDS}",
    **dict.fromkeys(("tensor_parallel_size", "tensor_parallel", "pipeline_parallel_size"), f"Set it to 1; {_SHARDS}"),
}
"""Last part of a key that asks for what this version does not have -> what works in its place."""


def _contradictions(job: JobSettings, method: Method, method_reason: str) -> list[Problem]:
    """What only shows once the method is decided; the rules see it where a key names adapters."""
    found, weights, quantization = [], job.engine.weights, job.quantization.given
    if method is not Method.FFT and weights.value == WeightFormat.BF16:
        found.append(Problem(
            f"spec.{weights.key}", "MethodContradiction",
            "weights: bf16 is for full finetuning, but the job trains adapters, whose weights are fp32. "
            + method_reason, "Remove weights, or select full finetuning."))  # fmt: skip
    if method is not Method.QLORA and quantization:
        found.append(Problem(
            f"spec.{quantization}", "MethodContradiction",
            f"training.quantization is for QLoRA, but the method is {method}. {method_reason}",
            f"Remove training.quantization, or {_to_qlora(job.method)}."))  # fmt: skip
    if method is Method.FFT and job.merge.value:
        found.append(Problem(
            f"spec.{job.merge.key}", "MethodContradiction",
            f"merge adds adapters to their base, but the job trains all weights. {method_reason}",
            "Remove merge, or select adapters (training.mode: lora)."))  # fmt: skip
    if method is Method.FFT and job.lora.source.value:
        found.append(Problem(
            f"spec.{job.lora.source.key}", "MethodContradiction",
            f"from names an adapter to continue from, but the job trains all weights. {method_reason}",
            "Remove from, or select adapters (training.mode: lora)."))  # fmt: skip
    if any(not text.strip() for text in job.data.added_tokens.value):
        found.append(Problem(
            f"spec.{job.data.added_tokens.key}", "BadValue",
            "A token of white space only would be in every template and row.", "Choose another text."))  # fmt: skip
    of_targets = () if method is Method.FFT else targets.contradictions(job.lora)
    return [*found, *_own_output(job), *_no_expressions(job.lora), *of_targets]


def _to_qlora(given: MethodSettings) -> str:
    """What makes the job one of QLoRA: beside use_qlora neither of these keys may select all weights."""
    full = [each.key for each in (given.mode, given.train_kind) if each.value in ("fft", "full", "full_finetune")]
    return "set training.use_qlora to true" + (f" and remove {' and '.join(full)}" if full else "")


def _own_output(job: JobSettings) -> Iterator[Problem]:
    source, output = job.lora.source, job.output
    if not source.value or not output.value:
        return
    used, written = (
        mount(source.value, uris.ADAPTER).path.rstrip("/"),
        mount(output.value, uris.OUTPUT).path.rstrip("/"),
    )
    if used in (written, f"{written}/{RESULT}"):
        yield Problem(
            f"spec.{source.key}", "AdapterContradiction", "from names what the job itself writes to output.uri.",
            "To continue an interrupted run of this job, leave from out; to train its result further, choose another "
            "output.uri.")  # fmt: skip


def _no_expressions(lora: LoraSettings) -> Iterator[Problem]:
    """Patterns that the trainer would refuse; whether they name layers of the model, only the trainer sees."""
    modules = [target for target in lora.target_modules.value if is_pattern(target)]
    ends = [(each.key, pattern) for each in (lora.rank_pattern, lora.alpha_pattern) for pattern in each.value or ()]
    for key, pattern, read in (*((lora.target_modules.key, target, whole_name) for target in modules),
                               *((*each, end_of_name) for each in ends)):  # fmt: skip
        try:
            read(pattern)
        except ValueError as error:
            yield Problem(
                f"spec.{key}", "BadExpression", f"{quote(pattern)} is not a regular expression: {error}.",
                r"Write one of Python's, such as .*layers\.[0-7]\..*_proj, or the end of a layer's name.",
            )  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """`resolution` is present whenever the job is valid, even if this version cannot run it."""

    problems: tuple[Problem, ...]
    resolution: Resolution | None
    nodes: Nodes | None = None
    """Those that had a say."""

    @property
    def waits_for_nodes(self) -> bool:
        """Whether nothing but the network is undecided, and nodes may still show it."""
        return self.nodes is not None and {problem.reason for problem in self.problems} == {UNDECIDED}

    @property
    def valid(self) -> bool:
        return not self.problems


def validate(
    resource: Mapping[str, Any],
    settings: PlanSettings,
    *,
    cluster: bool = True,
    pinned_network: str = "",
    nodes: Nodes | None = None,
) -> Verdict:
    """Check a FinetuneJob given as plain data.

    cluster: whether it will run on one; pinned_network: the profile that it was accepted with, if it was
    (network.pinned_name); nodes: None if they have no say.
    """
    found = _mistakes(resource, cluster=cluster)
    if found and any(p.reason not in ABOUT_PODS for p in _mistakes(resource, cluster=False)):
        return Verdict(tuple(found), None)
    # The rules about pods do not affect decisions, so both are reported at once.
    resolution = resolve(resource, settings, cluster=cluster, pinned_network=pinned_network, nodes=nodes)
    return Verdict(tuple(sorted([*found, *resolution.problems])), resolution, nodes)


def _mistakes(resource: Mapping[str, Any], *, cluster: bool) -> list[Problem]:
    """Of the job as it is written; then of what its DeepSpeed dictionary means, at the dictionary's own paths."""
    found = check.problems(resource, cluster=cluster)
    if any(p.reason not in ABOUT_PODS for p in found):
        return found
    meant = deepspeed_dictionary.translated(as_stored(resource["spec"]))
    if meant.problems:
        return sorted([*found, *meant.problems])
    again = check.problems({**resource, "spec": meant.spec}, cluster=cluster) if meant.sources else found
    return sorted(_in_dictionary(each, meant.sources) for each in again)


def _in_dictionary(problem: Problem, sources: Mapping[str, str]) -> Problem:
    """The same, where the values that the dictionary has filled in are written."""
    message = problem.message
    for key, source in sources.items():
        message = message.replace(f"{key} = ", f"{source} = ")
    path = sources.get(problem.path.removeprefix("spec."))
    return replace(problem, message=message, path=f"spec.{path}" if path else problem.path)


def needs_nodes(resource: Mapping[str, Any], settings: PlanSettings) -> bool:
    """Whether the nodes of the cluster have a say in a new job, which may be invalid."""
    if any(p.reason not in ABOUT_PODS for p in _mistakes(resource, cluster=False)):
        return False
    job = job_settings.read(resource)
    return needs_evidence(job, resolve_layout(job.layout), _device(job), settings)
