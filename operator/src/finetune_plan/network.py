"""Which network joins the nodes of a job: the profile by name, and why. docs/adr/0048 says why nothing is assumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_api.resource import reasons
from finetune_api.runtime.choices import Device
from finetune_api.validation.problem import Problem
from finetune_api.validation.unknown import nearest

from . import network_evidence, network_files
from .job_settings import JobSettings, Setting
from .layout import Layout
from .network_evidence import PRODUCT_LABEL, NodeClass
from .notes import Note, note
from .settings import PlanSettings

if TYPE_CHECKING:
    from .network_profile import NetworkProfile

AUTO, NONE, TCP = "auto", "none", "tcp"
EVERY_TYPE = "*"
"""Stands for every gpu_type in the administrator's defaults."""
KEY = "spec.network.profile"


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
    nodes: tuple[NodeClass, ...] = (),
) -> tuple[ResolvedNetwork, tuple[Problem, ...]]:
    """The network and what keeps the job from using it.

    pinned: the name that was decided when the job was accepted; nodes: all classes of nodes, where they are known.
    """
    chosen = _pinned(pinned, settings) if pinned else _choose(job, layout, device, settings, nodes)
    if isinstance(chosen, Problem):
        return ResolvedNetwork("", chosen.message), (chosen,)
    if chosen.name == NONE or layout.nodes == 1 or device is Device.CPU:
        return chosen, ()
    from .network_profile import profile_of  # noqa: PLC0415 - needs pydantic, which `validate` mostly does without

    profile = profile_of(chosen.name, settings.networks)
    return ResolvedNetwork(chosen.name, chosen.reason, profile), tuple(
        _obstacles(chosen.name, profile, job, layout, settings)
    )


def network_notes(asked: Setting[str | None], network: ResolvedNetwork) -> Iterator[Note]:
    """What the user should know of the decision."""
    if asked.value not in (None, AUTO, NONE, TCP, network.name):
        yield note(reasons.NETWORK_UNUSED, key=asked.key, value=asked.value)


def _pinned(name: str, settings: PlanSettings) -> ResolvedNetwork | Problem:
    if name != NONE and name not in known_names(settings):
        return Problem(
            KEY, "UnknownNetwork", f"The job was accepted with the network profile {name}, which is gone.",
            f"Have settings.networks name {name} again, or delete the job and create it again.")  # fmt: skip
    return ResolvedNetwork(name, "The job was accepted with it.")


def _choose(
    job: JobSettings, layout: Layout, device: Device, settings: PlanSettings, nodes: tuple[NodeClass, ...]
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
    job: JobSettings, layout: Layout, settings: PlanSettings, nodes: tuple[NodeClass, ...]
) -> ResolvedNetwork | Problem:
    """The profile whose evidence all nodes with the job's GPUs have; of several the one that asks for most."""
    kind = job.gpu_type.value.upper()
    products = settings.accelerators[kind].products if kind in settings.accelerators else ()
    mine = [node for node in nodes if node.labels.get(PRODUCT_LABEL) in products]
    best = network_evidence.best(_profiles(settings), mine) if mine else {}
    if len(best) == 1:
        [(name, evidence)] = best.items()
        return ResolvedNetwork(name, f"The nodes with {kind} have what it asks for: {evidence.sentence}.")
    tied = f" Their labels and resources fit {', '.join(best)} alike." if best else ""
    return Problem(
        KEY, "NetworkUndecided",
        f"The job has {layout.nodes} nodes with {job.gpu_type.value}, and nothing says which network joins them."
        + tied,
        f"Set network.profile to one of {', '.join(known_names(settings))}, where tcp is slow and needs "
        "nothing; or have the administrator set settings.defaultNetworks.")  # fmt: skip


def _obstacles(
    name: str, profile: NetworkProfile, job: JobSettings, layout: Layout, settings: PlanSettings
) -> Iterator[Problem]:
    """Why this job cannot use the profile here."""
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
    if profile.gpus_per_node and profile.gpus_per_node != layout.gpus_per_node:
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
    return network_evidence.classes(_profiles(settings), nodes)


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
