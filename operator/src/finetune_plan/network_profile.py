"""What pods need to use one kind of network between nodes, as data: a file in networks/, or a value of the chart.

A profile is written in Kubernetes' own terms. `${parameter}` stands for what only an administrator knows, such as the
name of a network. Imported only where a job has several nodes: the models take longer than the rest of a verdict.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from . import network_files
from .contract import PATHS

_OWN_VOLUMES = re.compile(r"run-config|shared-memory|scratch|tmp|output|(claim|configmap)-\d+|cache|hugging-face")
OWN_CONTAINERS = ("pytorch",)
"""What backends call the trainer's container."""
_OWN_VARIABLES = re.compile(
    r"(FINETUNE|PET|HF)_.*|MASTER_(ADDR|PORT)|(.*_)?RANK|(.*_)?WORLD_SIZE|PYTHON.*|LD_PRELOAD|PATH|HOME|TMPDIR"
)
_OWN_ANNOTATIONS = re.compile(r"(.*\.)?(finetune\.dev|kubeflow\.org|kueue\.x-k8s\.io)/.*")
_OWN_PATHS = (*PATHS.values(), "/opt/finetune")
"""What the trainer has at these paths comes from other volumes and from its image."""
_QUALIFIED = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?", re.ASCII)
_OBJECT = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_QUANTITY = re.compile(r"0*[1-9][0-9]*(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_WHOLE_NUMBER = re.compile(r"0*[1-9][0-9]*")
_PARAMETER = re.compile(r"\$\{(\w+)\}")
_BASELINE = {"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE",
             "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"}  # fmt: skip
"""Capabilities that the level baseline lets a container add (kubernetes.io, Pod Security Standards)."""

NAME = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
Name = Annotated[str, StringConstraints(pattern=NAME)]
Text = Annotated[str, StringConstraints(min_length=1)]
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^:]*$")]
Capability = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z_]*$")]
Variables = dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class ProfileSource(_Data):
    """Where the values of a profile were read."""

    repository: Text
    path: Text
    commit: str = ""


class Parameter(_Data):
    """What an administrator says; without a default, the profile is refused until it is said."""

    description: Text
    default: str | None = None


class Evidence(_Data):
    """What a node has, all of it, if and only if it is on this network."""

    labels: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Key -> values, any of them; no value stands for all."""
    resources: tuple[str, ...] = ()
    """Names of extended resources."""

    @property
    def sentence(self) -> str:
        """What it asks for, as a part of a sentence."""
        return ", ".join((*self.labels, *self.resources))


class Volume(_Data):
    """A volume of the pod, and where the trainer sees it; an emptyDir unless one of the sources is given."""

    name: Name
    mount_path: AbsolutePath | None = None
    """None: only sidecars mount it."""
    host_path: AbsolutePath | None = None
    config_map: str | None = None
    read_only: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.host_path and self.config_map:
            raise ValueError(f"volume {self.name} has both hostPath and configMap; give one of them")
        return self


class Sidecar(_Data):
    """A container that runs beside the trainer for as long as it does (Kubernetes 1.29)."""

    name: Name
    image: Text
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: Variables = Field(default_factory=dict)
    capabilities: tuple[Capability, ...] = ()
    mounts: dict[Name, AbsolutePath] = Field(default_factory=dict)
    """Volume -> path."""


class NetworkProfile(_Data):
    """One kind of network."""

    description: Text
    source: ProfileSource | None = None
    verified: bool = False
    """Whether somebody has seen a job of ours use it."""
    gpus_per_node: int | None = Field(default=None, ge=1)
    """GPUs that a pod has to have, where the values below are those of a whole node."""
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    resources: dict[str, StrictInt | str] = Field(default_factory=dict)
    """Extended resources and hugepages of a pod; requests and limits alike, as Kubernetes wants both."""
    annotations: dict[str, str] = Field(default_factory=dict)
    env: Variables = Field(default_factory=dict)
    """Of the trainer; pods.env of a job wins."""
    volumes: tuple[Volume, ...] = ()
    claims: dict[Name, str] = Field(default_factory=dict)
    """Name -> ResourceClaimTemplate in the job's namespace (resource.k8s.io/v1)."""
    sidecars: tuple[Sidecar, ...] = ()
    capabilities: tuple[Capability, ...] = ()
    """Added to the trainer's container. Only root has them: Kubernetes has no ambient capabilities (KEP-2763)."""
    run_as_user: int | None = Field(default=None, ge=0)
    """UID of the trainer; None: that of its image."""
    privileged: bool = False
    host_network: bool = False
    evidence: Evidence | None = None

    @model_validator(mode="after")
    def _fits_our_pods(self) -> Self:
        for problem in _misfits(self):
            raise ValueError(problem)
        return self

    @property
    def pod_security(self) -> str:
        """The strictest Pod Security level that admits the pods."""
        added = {*self.capabilities, *(name for each in self.sidecars for name in each.capabilities)}
        if self.privileged or self.host_network or self.host_paths or added - _BASELINE:
            return "privileged"
        return "baseline" if added or self.sidecars or self.run_as_user == 0 else "restricted"

    @property
    def host_paths(self) -> tuple[str, ...]:
        return tuple(each.host_path for each in self.volumes if each.host_path)

    @property
    def privileges(self) -> tuple[str, ...]:
        """What an administrator has to allow, as parts of a sentence."""
        return tuple(
            part
            for needed, part in (
                (self.privileged, "a privileged container"),
                (self.run_as_user == 0, "root in the container"),
                (self.host_network, "the network of the node"),
                (self.capabilities, f"the capabilities {', '.join(self.capabilities)}"),
                (self.host_paths, f"files of the node ({', '.join(self.host_paths)})"),
                (self.sidecars, f"the sidecars {', '.join(each.name for each in self.sidecars)}"),
            )
            if needed
        )


def _misfits(profile: NetworkProfile) -> Iterator[str]:
    """Why a profile cannot become a part of our pods."""
    yield from _volume_misfits(profile)
    yield from _sidecar_misfits(profile)
    yield from _resource_misfits(profile)
    yield from _parameter_misfits(profile)
    for name in filter(_OWN_VARIABLES.fullmatch, profile.env):
        yield f"env: {name} is set by the operator or the launcher; remove it"
    for key in profile.annotations:
        if not _fits(_QUALIFIED, key):
            yield f"annotations: {key!r} is no legal name of an annotation; correct it"
        if _OWN_ANNOTATIONS.fullmatch(key):
            yield f"annotations: {key} belongs to a controller of the job; remove it"
    if profile.capabilities and profile.run_as_user != 0:
        yield "capabilities: only root has them; set runAsUser to 0, or leave them out"
    for claim, template in profile.claims.items():
        if not _fits(_OBJECT, template):
            yield f"claims: {template!r} of {claim} is no legal name of a ResourceClaimTemplate; correct it"


def _volume_misfits(profile: NetworkProfile) -> Iterator[str]:
    names = [each.name for each in profile.volumes]
    paths = [_whole(each.mount_path) for each in profile.volumes if each.mount_path]
    for each in profile.volumes:
        if _OWN_VOLUMES.fullmatch(each.name) or names.count(each.name) > 1:
            yield f"volumes: the name {each.name} is taken; choose another"
        if ".." in (each.host_path or "").split("/"):
            yield f"volumes: {each.host_path} has a part '..'; write the whole path"
        if each.config_map is not None and not _fits(_OBJECT, each.config_map):
            yield f"volumes: {each.config_map!r} is no legal name of a ConfigMap; correct it"
    for path in paths:
        if any(_overlap(path, own) for own in _OWN_PATHS) or paths.count(path) > 1:
            yield f"volumes: something else is mounted at {path}; choose another mountPath"


def _sidecar_misfits(profile: NetworkProfile) -> Iterator[str]:
    names, volumes = [each.name for each in profile.sidecars], {each.name for each in profile.volumes}
    for each in profile.sidecars:
        if each.name in OWN_CONTAINERS or names.count(each.name) > 1:
            yield f"sidecars: the name {each.name} is taken; choose another"
        if missing := set(each.mounts) - volumes:
            yield f"sidecars: {each.name} mounts {', '.join(sorted(missing))}, which is not among volumes; add it"
        if len(set(each.mounts.values())) < len(each.mounts):
            yield f"sidecars: {each.name} mounts two volumes at one path; choose another"


def _resource_misfits(profile: NetworkProfile) -> Iterator[str]:
    for name, amount in profile.resources.items():
        if not _fits(_QUALIFIED, name) or not ("/" in name or name.startswith(("hugepages-", "${"))):
            yield f"resources: {name!r} is neither an extended resource nor hugepages; correct it"
        counted = not name.startswith("hugepages-")
        if not _fits(_WHOLE_NUMBER if counted else _QUANTITY, str(amount)):
            legal = "number of devices, such as 8" if counted else "quantity, such as 5Gi"
            yield f"resources: {amount!r} of {name} is no {legal}; correct it"


def _fits(pattern: re.Pattern[str], text: str) -> bool:
    """Whether it matches, or will have parameters filled in first."""
    return bool("${" in text or pattern.fullmatch(text))


def _parameter_misfits(profile: NetworkProfile) -> Iterator[str]:
    known, used = set(profile.parameters), set(_used(profile.model_dump(exclude={"parameters", "source"})))
    for name in sorted(used - known):
        yield f"parameters: ${{{name}}} is used and not declared; add it"
    for name in sorted(known - used):
        yield f"parameters: {name} is declared and not used; remove it"


def _whole(path: str) -> str:
    """An absolute path as its parts say it."""
    return f"/{posixpath.normpath(path).lstrip('/')}"


def _overlap(path: str, other: str) -> bool:
    return f"{path.rstrip('/')}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path.rstrip('/')}/")


def profile_of(name: str, given: Mapping[str, Mapping[str, Any]]) -> NetworkProfile:
    """The profile of that name, with the parameters that `given`, the administrator's own profiles, says.

    An entry of `given` changes the built-in profile `base`, by default the one of the same name: of maps entry by
    entry (null removes one), of all else as a whole. Its `values` fill parameters, which are then no parameters any
    more. Raises ValueError for data that makes no profile.
    """
    own = dict(given.get(name, {}))
    base, values = own.pop("base", name), own.pop("values", {})
    known = network_files.names()
    if base not in known and base != name:
        raise ValueError(f"base: {base!r} is no built-in profile; choose one of {', '.join(known)}")
    data = _merged(network_files.data(base) if base in known else {}, own)
    return _filled(_profile(data), values)


def _profile(data: Mapping[str, Any]) -> NetworkProfile:
    try:
        return NetworkProfile.model_validate(data)
    except ValidationError as error:
        messages = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ValueError("; ".join(text.removeprefix(": Value error, ") for text in messages)) from None


def entry_schema() -> dict[str, Any]:
    """JSON schema of an entry of `given` in profile_of, as far as a chart can check it: names and rough types."""
    known = NetworkProfile.model_json_schema()["properties"]
    rough = {name: {key: node[key] for key in ("type",) if key in node} for name, node in known.items()}
    own = {"base": {"type": "string"}, "values": {"type": "object"}}
    return {"type": "object", "properties": own | rough, "additionalProperties": False}


def _merged(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(data)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = {k: v for k, v in {**old, **value}.items() if v is not None}
        else:
            merged[key] = value
    return merged


def _filled(profile: NetworkProfile, values: Mapping[str, Any]) -> NetworkProfile:
    """With values and defaults in the place of their parameters; those without stay."""
    if unknown := set(values) - set(profile.parameters):
        known = ", ".join(profile.parameters) or "none"
        raise ValueError(f"values: {', '.join(sorted(unknown))} is no parameter; there are: {known}")
    defaults = {name: each.default for name, each in profile.parameters.items() if each.default is not None}
    known_values = defaults | {name: str(value) for name, value in values.items()}
    data = profile.model_dump(by_alias=True, exclude={"parameters"})
    left = {name: each for name, each in profile.parameters.items() if name not in known_values}
    return _profile({**_replaced(data, known_values), "parameters": left})


def _replaced(data: Any, values: Mapping[str, str]) -> Any:
    """`${name}` replaced in all texts, keys included."""
    if isinstance(data, str):
        return _PARAMETER.sub(lambda match: values.get(match[1], match[0]), data)
    if isinstance(data, Mapping):
        return {_replaced(key, values): _replaced(value, values) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_replaced(each, values) for each in data]
    return data


def _used(data: Any) -> Iterator[str]:
    """Names of the parameters in all texts."""
    if isinstance(data, str):
        yield from _PARAMETER.findall(data)
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _used(key)
            yield from _used(value)
    elif isinstance(data, list | tuple):
        for each in data:
            yield from _used(each)
