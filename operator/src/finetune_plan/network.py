"""Which network joins the nodes of a job: the profile by name, and why. docs/adr/0048 says why nothing is assumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_api.resource import reasons
from finetune_api.runtime.choices import Device
from finetune_api.validation.problem import Problem
from finetune_api.validation.unknown import nearest

from . import network_evidence, network_files
from .accelerators import PRODUCT_LABEL
from .job_settings import JobSettings, Setting
from .layout import Layout
from .network_evidence import NodeClass, Nodes
from .notes import Note, note
from .settings import PlanSettings

if TYPE_CHECKING:
    from finetune_api.resource.status import Status

    from .network_profile import NetworkProfile

AUTO, NONE, TCP = "auto", "none", "tcp"
EVERY_TYPE = "*"
"""Stands for every gpu_type in the administrator's defaults."""
KEY = "spec.network.profile"
UNDECIDED = "NetworkUndecided"
OF_SETTINGS = frozenset(
    {UNDECIDED, "UnknownNetwork", "NetworkIncomplete", "NetworkNotAllowed", "NetworkContradiction"}
)
"""Reasons that depend on the administrator's settings, so that without a cluster nothing is known of them."""
REASON_OF_0_1 = "No faster network is configured for this gpu_type."
"""What version 0.1.0 wrote of every job, beside the profile tcp; no later one writes it."""


@dataclass(frozen=True)
class ResolvedNetwork:
    """A decision."""

    name: str
    """Empty: there is none, and the job is refused."""
    reason: str
    profile: NetworkProfile | None = None
    """None: pods need nothing for it."""


LOCAL = ResolvedNetwork(NONE, "All nodes are processes of one machine.")
"""Of a run without a cluster."""


def resolve_network(
    job: JobSettings,
    layout: Layout,
    device: Device,
    settings: PlanSettings,
    *,
    pinned: str = "",
    nodes: Nodes | None = None,
) -> tuple[ResolvedNetwork, tuple[Problem, ...]]:
    """The network and what keeps the job from using it.

    pinned: what was decided when the job was accepted (pinned_name); nodes: None if they have no say.
    """
    chosen = _pinned(pinned, settings) if pinned else _choose(job, layout, device, settings, nodes)
    if isinstance(chosen, Problem):
        return ResolvedNetwork("", chosen.message), (chosen,)
    if chosen.name == NONE or device is Device.CPU or (layout.nodes == 1 and not pinned):
        return chosen, ()
    from .network_profile import profile_of  # noqa: PLC0415 - needs pydantic, which `validate` mostly does without

    profile = profile_of(chosen.name, settings.networks)
    return ResolvedNetwork(chosen.name, chosen.reason, profile), tuple(
        _obstacles(chosen.name, profile, job, None if pinned else layout, settings)
    )


def pinned_name(job: JobSettings, status: Status) -> str:
    """What the status of a job with runs pins: none, if an earlier version, which knew no networks, wrote it.

    Such a job keeps the pods that it had. A job that names its network keeps that one by its name, which is then
    nothing that has to be pinned: the answer is empty.
    """
    asked, name = job.pods.network_profile.value, status.resolved and status.resolved.network
    if name and status.network and status.network.reason not in (None, REASON_OF_0_1):
        return name
    return NONE if asked in (None, AUTO) else ""


def needs_evidence(job: JobSettings, layout: Layout, device: Device, settings: PlanSettings) -> bool:
    """Whether nothing but the nodes themselves can say which network joins the nodes of a new job."""
    asked = job.pods.network_profile.value or AUTO
    several = layout.nodes > 1 and device is not Device.CPU
    return several and asked == AUTO and _by_default(job, settings) is None


def network_notes(asked: Setting[str | None], network: ResolvedNetwork) -> Iterator[Note]:
    """What the user should know of the decision; where there is none, its problem says it."""
    if network.name and asked.value not in (None, AUTO, NONE, TCP, network.name):
        yield note(reasons.NETWORK_UNUSED, key=asked.key, value=asked.value)


def _pinned(name: str, settings: PlanSettings) -> ResolvedNetwork | Problem:
    if name != NONE and name not in known_names(settings):
        return Problem(
            KEY, "UnknownNetwork", f"The job was accepted with the network profile {name}, which is gone.",
            f"Have settings.networks name {name} again, or delete the job and create it again.")  # fmt: skip
    return ResolvedNetwork(name, "The job was accepted with it.")


def _choose(
    job: JobSettings, layout: Layout, device: Device, settings: PlanSettings, nodes: Nodes | None
) -> ResolvedNetwork | Problem:
    given, asked = job.pods.network_profile, job.pods.network_profile.value or AUTO
    if asked not in (AUTO, NONE, TCP) and asked not in known_names(settings):
        return _unknown(asked, known_names(settings))
    if layout.nodes == 1:
        return ResolvedNetwork(NONE, "One node needs no network.")
    if device is Device.CPU:
        return ResolvedNetwork(TCP, "Ranks on CPUs talk over TCP.")
    if asked in (NONE, TCP):
        return ResolvedNetwork(TCP, f"{given.key} is {asked}: GPUs talk over TCP.")
    if asked != AUTO:
        return ResolvedNetwork(asked, f"{given.key} is {asked}.")
    return _by_default(job, settings) or _by_evidence(job, layout, settings, nodes)


def _by_default(job: JobSettings, settings: PlanSettings) -> ResolvedNetwork | None:
    """What the administrator said of the gpu_type."""
    kind, defaults = job.gpu_type.value.upper(), settings.default_networks
    for key, subject in ((kind, f"gpu_type {kind}"), (EVERY_TYPE, "every gpu_type")):
        if key in defaults:
            return ResolvedNetwork(_or_tcp(defaults[key]), f"It is the administrator's default for {subject}.")
    return None


def _by_evidence(
    job: JobSettings, layout: Layout, settings: PlanSettings, nodes: Nodes | None
) -> ResolvedNetwork | Problem:
    """The profile whose evidence all nodes with the job's GPUs have, of those that may be used here."""
    kind = job.gpu_type.value.upper()
    accelerator = settings.accelerators.get(kind)
    if nodes and accelerator and not accelerator.sentence:
        return _undecided(job, layout, settings, f" GPUs of the type {kind} are found by no label.")
    mine = [n for n in nodes.classes if accelerator and accelerator.is_on(n.labels)] if nodes else []
    profiles = _profiles(settings) if mine else {}
    usable = {name: profile for name, profile in profiles.items() if _is_usable(name, profile, settings)}
    found = network_evidence.fitting(usable, mine) if mine else {}
    own = {name: evidence for name, evidence in found.items() if name in settings.networks}
    best = own if len(own) == 1 else found
    if len(best) == 1:
        [(name, evidence)] = best.items()
        return ResolvedNetwork(name, f"The nodes with {kind} have what it asks for: {evidence.sentence}.")
    unusable = {name: profile for name, profile in profiles.items() if name not in usable}
    return _undecided(
        job, layout, settings, _evidence_message(kind, nodes, mine, (usable, unusable), tuple(best)) if nodes else ""
    )


def _undecided(job: JobSettings, layout: Layout, settings: PlanSettings, missing: str) -> Problem:
    """missing: what the nodes do not show, as a part of the message."""
    others = [name for name in known_names(settings) if name != TCP]
    return Problem(
        KEY, UNDECIDED,
        f"The job has {layout.nodes} nodes with {job.gpu_type.value}, and nothing says which network joins them."
        f"{missing}",
        "Have the administrator set settings.defaultNetworks; or set network.profile to one of "
        f"{', '.join(others)}, or to {TCP}, which needs nothing and is slow.")  # fmt: skip


def _is_usable(name: str, profile: NetworkProfile, settings: PlanSettings) -> bool:
    """Whether the administrator has said and allowed what it needs."""
    return not profile.parameters and not (profile.privileges and name not in settings.privileged_networks)


def _evidence_message(
    kind: str, nodes: Nodes, mine: Sequence[NodeClass],
    profiles: tuple[Mapping[str, NetworkProfile], Mapping[str, NetworkProfile]], tied: Sequence[str],
) -> str:  # fmt: skip
    """What the nodes show instead of one network, as a part of a message. profiles: usable ones, and the others."""
    usable, unusable = profiles
    if nodes.error:
        return f" The nodes cannot be read: {nodes.error.rstrip('.')}."
    if not mine:
        return f" No node with {kind} is ready and schedulable."
    if tied:
        return f" Labels and resources of the nodes fit {', '.join(tied)} alike."
    if fit := network_evidence.fitting(unusable, mine):
        return f" They fit {', '.join(fit)}, which the administrator has to complete or allow."
    total = network_evidence.count(mine)
    everyone = f"{total} node{'s' * (total > 1)} with {kind}"
    found = [
        f" Of {everyone}, {number} lack{'s' * (number == 1)} {', '.join(missing)}, which {name} asks for."
        for name, (missing, number) in network_evidence.lacking(usable, mine).items()
    ]
    return "".join(found) or f" No network that may be used here is evident from {everyone}."


def _obstacles(
    name: str, profile: NetworkProfile, job: JobSettings, layout: Layout | None, settings: PlanSettings
) -> Iterator[Problem]:
    """Why this job cannot use the profile here. layout: None if it was pinned, so that the spec's has no effect."""
    if profile.parameters:
        missing = "; ".join(f"{key} ({each.description})" for key, each in profile.parameters.items())
        yield Problem(KEY, "NetworkIncomplete",
                      f"The network profile {name} lacks what an administrator knows: {missing}.",
                      f"Have it said in settings.networks.{name}.values, or choose another profile.")  # fmt: skip
    if profile.privileges and name not in settings.privileged_networks:
        yield Problem(KEY, "NetworkNotAllowed",
                      f"The network profile {name} needs {', '.join(profile.privileges)}, which is not allowed here.",
                      f"Have settings.privilegedNetworks name it, and the namespace admit the Pod Security level "
                      f"{profile.pod_security}; or choose another profile.")  # fmt: skip
    if layout and profile.gpus_per_node and profile.gpus_per_node != layout.gpus_per_node:
        yield Problem("spec.compute.gpus_per_node", "NetworkContradiction",
                      f"The network profile {name} is for pods with all {profile.gpus_per_node} GPUs of a node, but "
                      f"pods of the job have {layout.gpus_per_node}.",
                      f"Set compute.gpus_per_node to {profile.gpus_per_node}, or choose another.")  # fmt: skip
    for key in sorted(profile.annotations.keys() & job.pods.annotations.value.keys()):
        yield Problem("spec.pods.annotations", "NetworkContradiction",
                      f"{key} is an annotation of the network profile {name}, too.", "Remove it.")  # fmt: skip


def _profiles(settings: PlanSettings) -> dict[str, NetworkProfile]:
    """All of them."""
    from .network_profile import profile_of  # noqa: PLC0415

    return {name: profile_of(name, settings.networks) for name in known_names(settings)}


def node_classes(nodes: Iterable[NodeClass], settings: PlanSettings) -> tuple[NodeClass, ...]:
    """Nodes without what no profile asks for, and of those that are alike then, one."""
    return network_evidence.classes(_profiles(settings), nodes, gpu_labels(settings))


def gpu_labels(settings: PlanSettings) -> tuple[str, ...]:
    """Labels of nodes that say which GPUs they have, that of GPU feature discovery first."""
    others = {key: None for each in settings.accelerators.values() for key in each.labels}
    return (PRODUCT_LABEL, *(key for key in others if key != PRODUCT_LABEL))


def known_names(settings: PlanSettings) -> tuple[str, ...]:
    """All profiles that a job may name."""
    return tuple(sorted({*network_files.names(), *settings.networks}))


def _unknown(name: str, known: tuple[str, ...]) -> Problem:
    near = nearest(name, known)
    hint = f"Did you mean {near}? " if near else ""
    return Problem(KEY, "UnknownNetwork", f"{name!r} is no network profile known here.",
                   f"{hint}Choose auto, none, or one of {', '.join(known)}.")  # fmt: skip


def _or_tcp(name: str) -> str:
    return TCP if name == NONE else name
