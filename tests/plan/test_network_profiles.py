"""Network profiles as data: the built-in ones, what an administrator changes, and the pods they make."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import Json
from finetune_plan import network_files
from finetune_plan.backends import BACKENDS
from finetune_plan.network_profile import OWN_CONTAINERS, NetworkProfile, profile_of
from finetune_plan.settings import PlanSettings
from plan import networks
from plan.networks import SETTINGS

NAMES = network_files.names()


@pytest.mark.parametrize("name", [n for n in NAMES if n != "tcp"])
def test_a_profile_says_where_it_was_read_and_that_nobody_has_seen_it_work(name: str) -> None:
    profile = profile_of(name, {})
    assert profile.source is not None
    assert re.fullmatch(r"[0-9a-f]{40}|", profile.source.commit)
    assert not profile.verified


def test_a_network_is_evident_from_a_resource_of_its_own() -> None:
    """Labels alone say what machine was sold, also with another network, or with one that is not up yet."""
    weak = {n for n in NAMES if (e := profile_of(n, networks.SETTINGS.networks).evidence) and not e.resources}
    assert weak == set()


def test_nccl_may_not_fall_back_to_sockets() -> None:
    free = {name for name in NAMES if "NCCL_NET" not in profile_of(name, {}).env}
    assert free == {"tcp", "gke-tcpx", "gke-tcpxo"}, "the names of the two plugins' networks are not known"


LEVELS = {
    "tcp": "restricted", "coreweave-ib": "restricted", "coreweave-nvl72": "restricted", "aws-efa": "restricted",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_level_of_pod_security_is_the_strictest_that_admits_the_pod(name: str) -> None:
    """The API server judges the same in tests/operator/test_network_pods.py."""
    profile = profile_of(name, SETTINGS.networks)
    assert profile.pod_security == LEVELS.get(name, "privileged")
    assert bool(profile.privileges) == (profile.pod_security != "restricted")


CHANGES: dict[str, tuple[Json, str, Json]] = {
    "a value fills a parameter": (
        {"aws-efa": {"values": {"devices": 16}}}, "aws-efa", {"resources": {"vpc.amazonaws.com/efa": "16",
                                                                          "hugepages-2Mi": "5120Mi"}}),
    "a default fills another": ({}, "nvidia-hostdev", {"env": {"NCCL_NET": "IB", "NCCL_IB_HCA": "mlx5"}}),
    "a variant has another name": (
        {"efa-p5en": {"base": "aws-efa", "values": {"devices": 16}}}, "efa-p5en", {"parameters": {}}),
    "of a map one entry is changed": (
        {"coreweave-ib": {"env": {"NCCL_IB_HCA": "ibp0"}}}, "coreweave-ib",
        {"env": {"NCCL_NET": "IB", "NCCL_SOCKET_IFNAME": "eth0", "NCCL_IB_HCA": "ibp0", "NCCL_COLLNET_ENABLE": "0",
                 "NCCL_NET_PLUGIN": "none", "UCX_TLS": "tcp", "UCX_NET_DEVICES": "eth0"}}),
    "or removed": ({"tcp": {"env": {"NCCL_IB_DISABLE": None}}}, "tcp", {"env": {}}),
    "a list is replaced": ({"oke-host": {"capabilities": []}}, "oke-host", {"capabilities": ()}),
    "null takes root away": (
        {"oke-host": {"runAsUser": None, "capabilities": []}}, "oke-host", {"run_as_user": None}),
    "a new one stands for itself": (
        {"ours": {"description": "Ours.", "resources": {"example.com/nic": 1}}}, "ours",
        {"resources": {"example.com/nic": 1}}),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_an_administrator_changes(case: str) -> None:
    given_, name, found = CHANGES[case]
    profile = profile_of(name, given_).model_dump()
    assert {key: profile[key] for key in found} == found


MISTAKES: dict[str, tuple[Json, str]] = {
    "an unknown base": ({"base": "efa"}, "base: 'efa' is no built-in profile; choose one of aks-nd,"),
    "an unknown value": ({"base": "aws-efa", "values": {"nics": 1}}, "nics is no parameter; there are: devices"),
    "a value that none takes": ({"base": "tcp", "values": {"a": 1}}, "a is no parameter; there are: none"),
    "an unknown field": ({"description": "x", "hostIPC": True}, "hostIPC"),
    "no description": ({"env": {}}, "description"),
    "a resource of ours": ({"description": "x", "resources": {"memory": "1Gi"}}, "resources: 'memory' is neither"),
    "no number of devices": ({"description": "x", "resources": {"a.b/c": "5Gi"}}, "'5Gi' of a.b/c is no number of"),
    "no device": ({"description": "x", "resources": {"a.b/c": 0}}, "0 of a.b/c is no number of devices, such as 8"),
    "a truth for a number": ({"description": "x", "resources": {"a.b/c": True}}, "resources.a.b/c.int: Input should"),
    "no quantity": ({"description": "x", "resources": {"hugepages-2Mi": "m"}}, "'m' of hugepages-2Mi is no quantity"),
    "no name of an annotation": ({"description": "x", "annotations": {"a b": ""}}, "'a b' is no legal name"),
    "an annotation of ours": (
        {"description": "x", "annotations": {"finetune.dev/run-config": "{}"}},
        "finetune.dev/run-config belongs to a controller of the job; remove it"),
    "a queue's annotation": (
        {"description": "x", "annotations": {"kueue.x-k8s.io/podset": "1"}}, "belongs to a controller of the job"),
    "capabilities of the image's user": (
        {"description": "x", "capabilities": ["IPC_LOCK"]}, "capabilities: only root has them; set runAsUser to 0"),
    "capabilities of another user": (
        {"description": "x", "runAsUser": 7, "capabilities": ["IPC_LOCK"]}, "capabilities: only root has them"),
    **{f"the image's {name}": ({"description": "x", "env": {name: "/x"}}, f"env: {name} is set by")
       for name in ("PATH", "HOME", "TMPDIR")},
    "a variable of the launcher": ({"description": "x", "env": {"WORLD_SIZE": "2"}}, "env: WORLD_SIZE is set by"),
    "a volume of ours": ({"description": "x", "volumes": [{"name": "claim-0"}]}, "the name claim-0 is taken"),
    "two volumes of one name": (
        {"description": "x", "volumes": [{"name": "a"}, {"name": "a"}]}, "volumes: the name a is taken"),
    "two sources": (
        {"description": "x", "volumes": [{"name": "a", "hostPath": "/a", "configMap": "b"}]}, "give one of them"),
    "a mount over one of ours": (
        {"description": "x", "volumes": [{"name": "a", "mountPath": "/mnt"}]}, "something else is mounted at /mnt"),
    "a mount inside one of ours": (
        {"description": "x", "volumes": [{"name": "a", "mountPath": "/dev/shm/a"}]}, "is mounted at /dev/shm/a"),
    **{f"a mount over the trainer by {path}": (
        {"description": "x", "volumes": [{"name": "a", "mountPath": path}]}, "something else is mounted at /")
       for path in ("/opt/finetune", "/opt", "//opt/finetune/venv", "/etc//finetune/", "/a/../etc/finetune", "//")},
    "two mounts at one path": (
        {"description": "x", "volumes": [{"name": "a", "mountPath": "/a"}, {"name": "b", "mountPath": "/a/b/.."}]},
        "something else is mounted at /a"),
    "a path that climbs": (
        {"description": "x", "volumes": [{"name": "a", "hostPath": "/a/../etc"}]}, "/a/../etc has a part '..'"),
    "a sidecar without its volume": (
        {"description": "x", "sidecars": [{"name": "s", "image": "i", "mounts": {"v": "/v"}}]},
        "sidecars: s mounts v, which is not among volumes; add it"),
    "a sidecar of the trainer's name": (
        {"description": "x", "sidecars": [{"name": "pytorch", "image": "i"}]}, "the name pytorch is taken"),
    "a parameter that nobody declares": (
        {"description": "x", "env": {"A": "${b}"}}, "parameters: ${b} is used and not declared; add it"),
    "a parameter that nobody uses": (
        {"description": "x", "parameters": {"b": {"description": "B."}}}, "parameters: b is declared and not used"),
    "no template": ({"description": "x", "claims": {"a": "B_"}}, "claims: 'B_' of a is no legal name"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_refused_with_the_field(case: str) -> None:
    entry, message = MISTAKES[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        profile_of("ours", {"ours": entry})


def test_no_backend_has_a_container_whose_name_a_sidecar_may_take() -> None:
    assert {backend.container for backend in BACKENDS} <= set(OWN_CONTAINERS)


# Any profile


TEXT = st.sampled_from([
    "a", "A", "a-b", "a/b", "rdma/ib", "hugepages-2Mi", "cache", "tmp", "pytorch", "", " ", "é", "${p}", "${q}",
    "a" * 64, "x.y/z", "NCCL_DEBUG", "RANK", "LD_PRELOAD", "IPC_LOCK", "8", "-1", "5Gi",
])  # fmt: skip
PATHS = st.sampled_from(
    [
        "/opt/x",
        "/opt/y",
        "/usr/z",
        "/",
        "/dev",
        "/dev/shm",
        "/opt/x/",
        "/a/../b",
        "opt",
        "/a:b",
        "/mnt/cache/a",
        "/tmp",
    ]
)


def often(*legal: str) -> st.SearchStrategy[str]:
    """One of these, or any."""
    return st.sampled_from(legal) | st.sampled_from(legal) | TEXT


NAME, CAPABILITY, VARIABLE = often("a", "b", "c-d"), often("IPC_LOCK", "CHOWN"), often("NCCL_ALGO", "UCX_TLS")
VOLUMES = st.fixed_dictionaries(
    {"name": NAME},
    optional={"mountPath": PATHS, "hostPath": PATHS, "configMap": NAME, "readOnly": st.booleans()},
)
SIDECARS = st.fixed_dictionaries(
    {"name": NAME, "image": NAME},
    optional={"capabilities": st.lists(CAPABILITY, max_size=2), "mounts": st.dictionaries(NAME, PATHS, max_size=2)},
)
ENTRIES = st.fixed_dictionaries(
    {"description": st.just("Any.")},
    optional={
        "parameters": st.dictionaries(st.sampled_from("pq"), st.just({"description": "P."}), max_size=2),
        "values": st.dictionaries(st.sampled_from("pq"), TEXT, max_size=2),
        "resources": st.dictionaries(often("a/b", "rdma/ib"), often("8", "5Gi") | st.integers(-1, 99), max_size=2),
        "annotations": st.dictionaries(often("a/b", "c"), TEXT, max_size=2),
        "env": st.dictionaries(VARIABLE, TEXT, max_size=2),
        "volumes": st.lists(VOLUMES, max_size=2),
        "claims": st.dictionaries(NAME, NAME, max_size=2),
        "sidecars": st.lists(SIDECARS, max_size=2),
        "capabilities": st.lists(CAPABILITY, max_size=2),
        "runAsUser": st.sampled_from([None, 0, 1000, -1]),
        "privileged": st.booleans(),
        "hostNetwork": st.booleans(),
    },
)
FIELDS = {f.alias or n for n, f in NetworkProfile.model_fields.items()} | {"values"}


@settings(max_examples=400, deadline=None)
@given(ENTRIES)
def test_any_profile_makes_a_legal_pod_or_is_refused_with_the_field(entry: Json) -> None:
    profile, refusal = made(entry)
    if profile is None:
        assert re.split(r"[.:]", refusal)[0] in FIELDS, refusal
    elif not profile.parameters:
        admin = PlanSettings(networks={"ours": entry}, privileged_networks=("ours",))
        assert faults(networks.pod(networks.manifest("ours", admin))) == []


def made(entry: Json) -> tuple[NetworkProfile | None, str]:
    """The profile, or why there is none."""
    try:
        return profile_of("ours", {"ours": entry}), ""
    except ValueError as error:
        return None, str(error)


def faults(template: Json) -> list[str]:
    """What an API server would refuse of a pod, as far as a profile can cause it."""
    pod = template["spec"]
    containers = [*pod["containers"], *pod.get("initContainers", ())]
    volumes = [v["name"] for v in pod["volumes"]]
    claims = {c["name"] for c in pod.get("resourceClaims", ())}
    found = ["volumes of one name"] * (len(set(volumes)) < len(volumes))
    found += ["containers of one name"] * (len({c["name"] for c in containers}) < len(containers))
    found += ["a policy without the network of the node"] * (("hostNetwork" in pod) != ("dnsPolicy" in pod))
    for container in containers:
        mounts, security = container.get("volumeMounts", ()), container["securityContext"]
        paths, names = [m["mountPath"] for m in mounts], [e["name"] for e in container.get("env", ())]
        resources = container.get("resources", {})
        found += [f"no volume {m['name']}" for m in mounts if m["name"] not in volumes]
        found += ["mounts at one path"] * (len(set(paths)) < len(paths))
        found += ["variables of one name"] * (len(set(names)) < len(names))
        found += ["privileged, and no escalation"] * (
            security.get("privileged", False) and "allowPrivilegeEscalation" in security
        )
        found += ["root, and no root"] * (
            security.get("runAsUser") == 0 and security.get("runAsNonRoot") is not False
        )
        found += [f"no claim {c['name']}" for c in resources.get("claims", ()) if c["name"] not in claims]
        for name, amount in resources.get("limits", {}).items():
            found += [f"{name}: {amount}"] * (not re.fullmatch(r"\d+(\.\d+)?[kMGTP]?i?", str(amount)))
            found += [f"{name}: not both"] * ("/" in name and resources["requests"].get(name) != amount)
    return found + re.findall(r"\$\{\w+\}", str(template))


def test_a_profile_that_was_not_allowed_or_filled_never_becomes_a_pod() -> None:
    for name in NAMES:
        profile = profile_of(name, {})
        if profile.parameters or profile.privileges:
            with pytest.raises(AssertionError):
                networks.manifest(name, replace(SETTINGS, networks={}, privileged_networks=()))
