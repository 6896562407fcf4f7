"""Which network joins the nodes of a job, why, and what keeps a job from using one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from builders import Json, resource
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.decide import plan
from finetune_plan.network import node_classes
from finetune_plan.network_evidence import NodeClass, Nodes
from finetune_plan.resolve import needs_nodes, validate
from finetune_plan.settings import PlanSettings
from finetune_plan.statuses import admission
from finetune_plan.workload import workload
from plan import networks
from plan.networks import SETTINGS
from plan.situations import NOW, accepted, condition, created, decided, seen

TWO: Json = {"compute": {"gpu_type": "H100", "nodes": 2, "gpus_per_node": 8}}
ONE: Json = {"compute": {"gpu_type": "H100", "gpu_count": 8}}
CPUS: Json = {"compute": {"gpu_type": "CPU", "gpu_count": 4, "nodes": 2}}
H100 = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
EFA, IB = "vpc.amazonaws.com/efa", "rdma/ib"
COREWEAVE = NodeClass({**H100, "node.coreweave.cloud/type": "h100-8x"}, frozenset({IB, "nvidia.com/gpu"}))
AWS = NodeClass(H100, frozenset({EFA}))
SHAPE = {**H100, "node.kubernetes.io/instance-type": "BM.GPU.H100.8"}


def named(profile: str, job: Json = TWO) -> Json:
    return {**job, "network.profile": profile}


def by_default(**defaults: str) -> PlanSettings:
    return replace(SETTINGS, default_networks={kind.replace("every", "*"): name for kind, name in defaults.items()})


def entries(networks: dict[str, Json], *allowed: str) -> PlanSettings:
    """An administrator with these profiles."""
    return PlanSettings(networks=networks, privileged_networks=allowed)


ALSO_BY_SHAPE = replace(
    SETTINGS,
    networks={
        **SETTINGS.networks,
        "by-shape": {
            "description": "Every machine of the shape.",
            "evidence": {"labels": {"node.kubernetes.io/instance-type": ["BM.GPU.H100.8"]}},
        },
    },
)


CASES: dict[str, tuple[Json, PlanSettings, tuple[NodeClass, ...], str, str]] = {
    "one node needs no network": (ONE, SETTINGS, (), "none", "One node needs no network."),
    "even if the job names one": (named("aws-efa", ONE), SETTINGS, (), "none", "One node needs no network."),
    "ranks on CPUs talk over TCP": (CPUS, SETTINGS, (), "tcp", "Ranks on CPUs talk over TCP."),
    "even if the job names another": (named("aws-efa", CPUS), SETTINGS, (), "tcp", "Ranks on CPUs talk over TCP."),
    "tcp is what the user chose": (named("tcp"), SETTINGS, (), "tcp", "network.profile is tcp: GPUs talk over TCP."),
    "none is another word for it": (named("none"), SETTINGS, (), "tcp", "profile is none: GPUs talk over TCP."),
    "a profile is known by its name": (named("aws-efa"), SETTINGS, (), "aws-efa", "network.profile is aws-efa."),
    "the administrator says it for a gpu_type": (
        TWO, by_default(H100="coreweave-ib"), (), "coreweave-ib", "the administrator's default for gpu_type H100."),
    "auto asks for that, too": (
        named("auto"), by_default(H100="coreweave-ib"), (), "coreweave-ib", "default for gpu_type H100."),
    "or for every gpu_type": (TWO, by_default(every="tcp"), (), "tcp", "default for every gpu_type."),
    "none as a default is TCP": (TWO, by_default(every="none"), (), "tcp", "default for every gpu_type."),
    "the gpu_type counts before every": (
        TWO, by_default(every="tcp", H100="aws-efa"), (), "aws-efa", "default for gpu_type H100."),
    "another gpu_type does not count": (
        TWO, by_default(every="tcp", A100="aws-efa"), (), "tcp", "default for every gpu_type."),
    "the job counts before the administrator": (
        named("tcp"), by_default(H100="aws-efa"), (), "tcp", "network.profile is tcp"),
    "the administrator counts before the nodes": (
        TWO, by_default(H100="tcp"), (COREWEAVE,), "tcp", "default for gpu_type H100."),
    "nodes show their network": (
        TWO, SETTINGS, (COREWEAVE,), "coreweave-ib",
        "The nodes with H100 have what it asks for: node.coreweave.cloud/type, rdma/ib."),
    "by their resources alone": (TWO, SETTINGS, (AWS,), "aws-efa", "have what it asks for: vpc.amazonaws.com/efa."),
    "nodes with other GPUs do not count": (
        TWO, SETTINGS, (AWS, NodeClass({"nvidia.com/gpu.product": "NVIDIA-L4"}), NodeClass()), "aws-efa", "H100"),
    "of two that fit, the one that asks for more counts": (
        TWO, ALSO_BY_SHAPE, (NodeClass(SHAPE, frozenset({"nvidia.com/rdma-vf"})),), "oke-vf", "nvidia.com/rdma-vf"),
    "which the other nodes have not": (TWO, ALSO_BY_SHAPE, (NodeClass(SHAPE),), "by-shape", "instance-type"),
    "a variant counts before what it is a variant of": (
        TWO, entries({"our-ib": {"base": "coreweave-ib"}}), (COREWEAVE,), "our-ib", "rdma/ib"),
    "what the administrator has not completed does not count": (
        TWO, entries({"efa-p5en": {"base": "aws-efa", "values": {"devices": 16}}}), (AWS,), "efa-p5en", EFA),
    "nor what is not allowed": (
        TWO, entries({"gib-a4": {"base": "gke-gib"}, "gke-gib": {"values": {"machine": "a3u"}}}, "gib-a4"),
        (NodeClass({**H100, "cloud.google.com/gke-accelerator": "nvidia-b200"},
                   frozenset({"networking.gke.io.networks/rdma-0"})),), "gib-a4", "rdma-0"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_network(case: str) -> None:
    changes, settings, nodes, name, reason = CASES[case]
    verdict = validate(resource(changes), settings, nodes=Nodes(nodes))
    assert verdict.problems == ()
    assert verdict.resolution is not None
    assert verdict.resolution.network.name == name
    assert verdict.resolution.network.reason.endswith(reason) or reason in verdict.resolution.network.reason


BARE = PlanSettings()
HCAS: Json = {"values": {"hcas": "mlx5_0"}}
REFUSED: dict[str, tuple[Json, PlanSettings, str, str, str]] = {
    "nothing says it": (
        TWO, BARE, "NetworkUndecided",
        "The job has 2 nodes with H100, and nothing says which network joins them.",
        "Have the administrator set settings.defaultNetworks; or set network.profile to one of aks-nd, aws-efa"),
    "auto says nothing": (
        named("auto"), BARE, "NetworkUndecided", "nothing says",
        "together, or to tcp, which needs nothing and is slow."),
    "a name is unknown": (
        named("corewave-ib"), BARE, "UnknownNetwork", "'corewave-ib' is no network profile known here.",
        "Did you mean coreweave-ib? Choose auto, none, or one of aks-nd,"),
    "also on one node": (named("x", ONE), BARE, "UnknownNetwork", "'x'", "Choose auto"),
    "what only an administrator knows was not said": (
        named("aws-efa"), BARE, "NetworkIncomplete", "lacks what an administrator knows: devices (number of EFA",
        "Have it said in settings.networks.aws-efa.values"),
    "its privileges were not allowed": (
        named("gke-gib"), BARE, "NetworkNotAllowed", "needs files of the node (/home/kubernetes/bin/nvidia, ",
        "Have settings.privilegedNetworks name it, and the namespace admit the Pod Security level privileged"),
    "nor were those of a default": (
        TWO, PlanSettings(networks={"oke-host": HCAS}, default_networks={"*": "oke-host"}), "NetworkNotAllowed",
        "needs a privileged container, root in the container, the network of the node, the capabilities IPC_LOCK",
        "Have settings.privilegedNetworks name it"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_job_without_a_network_is_refused_by_the_key_that_would_decide_it(case: str) -> None:
    changes, settings, reason, message, remedy = REFUSED[case]
    [problem] = validate(resource(changes), settings).problems
    assert (problem.path, problem.reason) == ("spec.network.profile", reason)
    assert message in problem.message
    assert remedy in problem.remedy


BOTH = NodeClass(H100, frozenset({EFA, "nvidia.com/hostdev"}))
WAITING: dict[str, tuple[PlanSettings, Nodes, str]] = {
    "they show nothing": (
        BARE, Nodes((NodeClass(H100, count=3),)),
        "Of 3 nodes with H100, 3 lack node.coreweave.cloud/type, rdma/ib, which coreweave-ib asks for."),
    "none has the GPUs": (
        SETTINGS, Nodes((NodeClass({}, frozenset({EFA})),)), "No node with H100 is ready and schedulable."),
    "there is none": (SETTINGS, Nodes(), "No node with H100 is ready and schedulable."),
    "not all have it": (
        SETTINGS, Nodes((replace(AWS, count=3), NodeClass(H100))),
        "Of 4 nodes with H100, 1 lacks vpc.amazonaws.com/efa, which aws-efa asks for."),
    "the shape alone is no evidence, because the network is not up yet": (
        replace(SETTINGS, privileged_networks=("oke-vf", "oke-host")),
        Nodes((NodeClass(SHAPE, frozenset({"nvidia.com/rdma-vf"})), NodeClass(SHAPE))),
        "Of 2 nodes with H100, 1 lacks nvidia.com/rdma-vf, which oke-vf asks for."),
    "they show two": (
        SETTINGS, Nodes((BOTH,)), "Labels and resources of the nodes fit aws-efa, nvidia-hostdev alike."),
    "two entries of the administrator fit alike": (
        entries({"aws-efa": {"values": {"devices": 32}}, "efa-p5en": {"base": "aws-efa", "values": {"devices": 16}}}),
        Nodes((AWS,)), "Labels and resources of the nodes fit aws-efa, efa-p5en alike."),
    "what they show is not complete": (
        BARE, Nodes((AWS,)), "They fit aws-efa, which the administrator has to complete or allow."),
    "what they show is not allowed": (
        replace(SETTINGS, privileged_networks=()), Nodes((NodeClass(H100, frozenset({"nvidia.com/hostdev"})),)),
        "They fit nvidia-hostdev, which the administrator has to complete or allow."),
    "no profile has evidence here": (
        entries({"coreweave-ib": {"evidence": None}}), Nodes((NodeClass(H100),)),
        "No network that may be used here is evident from 1 node with H100."),
    "they cannot be read": (
        SETTINGS, Nodes(error="nodes is forbidden."), "The nodes cannot be read: nodes is forbidden."),
}  # fmt: skip


@pytest.mark.parametrize("case", WAITING)
def test_a_job_whose_network_nodes_may_still_show_waits_and_says_for_what(case: str) -> None:
    settings, nodes, message = WAITING[case]
    answer = plan(replace(seen({"network.profile": None}), nodes=nodes), settings, NOW, BACKEND)
    assert (created(answer), answer.status.phase, answer.requeue_after) == ([], "Queued", 60)
    assert (condition(answer, "Accepted"), condition(answer, "Ready")) == (
        ("Unknown", "NetworkUndecided"),
        ("False", "NotFinished"),
    )
    [said] = [c.message for c in answer.status.conditions or () if c.type == "Accepted"]
    assert f"nothing says which network joins them. {message} Have the administrator set" in said


def test_a_job_that_is_wrong_elsewhere_does_not_wait_for_nodes() -> None:
    changes = {"network.profile": None, "compute.gpu_type": "X9000"}
    answer = plan(replace(seen(changes), nodes=Nodes()), SETTINGS, NOW, BACKEND)
    assert (condition(answer, "Accepted"), answer.status.phase) == (("False", "UnknownGpuType"), "Failed")


def test_a_network_of_the_nodes_that_the_job_contradicts_is_looked_at_again() -> None:
    """The nodes may show another one later."""
    nodes = Nodes((NodeClass(SHAPE, frozenset({"nvidia.com/rdma-vf"})),))
    answer = plan(replace(seen({"network.profile": None}), nodes=nodes), SETTINGS, NOW, BACKEND)
    assert (condition(answer, "Accepted"), answer.requeue_after) == (("False", "NetworkContradiction"), 60)


NEEDS: dict[str, tuple[Json, PlanSettings, bool]] = {
    "several nodes that nothing is said of": (TWO, BARE, True),
    "auto": (named("auto"), BARE, True),
    "another gpu_type has a default": (TWO, by_default(A100="tcp"), True),
    "the pods are wrong": ({**TWO, "pods.cpu": "0"}, BARE, True),
    "one node": (ONE, BARE, False),
    "CPUs": (CPUS, BARE, False),
    "a profile": (named("aws-efa"), BARE, False),
    "tcp": (named("tcp"), BARE, False),
    "a default of its gpu_type": (TWO, by_default(H100="aws-efa"), False),
    "a default of every gpu_type": (TWO, by_default(every="tcp"), False),
    "a job that is none": ({"compute": {"gpu_type": 5, "nodes": "two"}}, BARE, False),
    "a job that contradicts itself": ({**TWO, "compute.gpu_count": 3}, BARE, False),
}


@pytest.mark.parametrize("case", NEEDS)
def test_nodes_have_a_say_in_jobs_that_nothing_else_decides(case: str) -> None:
    changes, settings, needed = NEEDS[case]
    assert needs_nodes(resource(changes), settings) is needed


ELSEWHERE: dict[str, tuple[Json, str, str]] = {
    "pods of a part of a node": (
        {"compute.gpus_per_node": 4, "network.profile": "gke-gib"}, "spec.compute.gpus_per_node",
        "is for pods with all 8 GPUs of a node, but pods of the job have 4."),
    "an annotation of the profile": (
        {"network.profile": "ours", "pods.annotations": {"example.com/rdma": "1", "mine": ""}},
        "spec.pods.annotations", "example.com/rdma is an annotation of the network profile ours, too."),
}  # fmt: skip


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_job_that_contradicts_its_network_is_refused_at_its_own_key(case: str) -> None:
    changes, path, message = ELSEWHERE[case]
    ours = {"ours": {"description": "Ours.", "annotations": {"example.com/rdma": "8"}}}
    [problem] = validate(resource({**TWO, **changes}), replace(SETTINGS, networks=ours)).problems
    assert (problem.path, problem.reason) == (path, "NetworkContradiction")
    assert message in problem.message


def test_a_run_on_one_machine_needs_no_decision() -> None:
    verdict = validate(resource(TWO), BARE, cluster=False)
    assert verdict.problems == ()
    assert verdict.resolution is not None
    assert verdict.resolution.network.profile is None


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        (named("aws-efa", ONE), ["network.profile is aws-efa, which only several nodes with GPUs use."]),
        (named("aws-efa", CPUS), ["network.profile is aws-efa, which only several nodes with GPUs use."]),
        (named("aws-efa"), []),
        (named("corewave-ib"), []),
        (named("tcp", ONE), []),
        (named("auto", ONE), []),
    ],
)
def test_a_name_that_is_not_used_is_a_note(changes: Json, notes: list[str]) -> None:
    resolution = validate(resource(changes), SETTINGS).resolution
    assert resolution is not None
    assert [n.sentence for n in resolution.notes if n.reason == "NetworkUnused"] == notes


def test_the_status_says_the_profile_and_the_reason() -> None:
    status = admission(validate(resource(named("aws-efa")), SETTINGS), now="2026-01-01T00:00:00Z")
    assert status.network is not None
    assert status.resolved is not None
    assert (status.network.profile, status.network.reason) == ("aws-efa", "network.profile is aws-efa.")
    assert status.resolved.network == "aws-efa"


def test_the_status_of_a_job_without_a_network_names_none() -> None:
    status = admission(validate(resource(TWO), BARE), now="2026-01-01T00:00:00Z")
    assert (status.network, status.resolved and status.resolved.network) == (None, None)


# The pod


def environment(changes: Json, settings: PlanSettings = SETTINGS) -> dict[str, str]:
    verdict = validate(resource(changes), settings)
    assert verdict.resolution is not None, verdict.problems
    [container] = networks.pod(BACKEND.render(workload(verdict.resolution, settings)))["spec"]["containers"]
    return {each["name"]: each.get("value", "") for each in container["env"]}


def test_the_jobs_own_variables_win_over_those_of_the_network() -> None:
    own = [{"name": "NCCL_IB_HCA", "value": "mlx5_7"}, {"name": "MINE", "value": "1"}]
    found = environment({**named("coreweave-ib"), "pods.env": own})
    assert (found["NCCL_IB_HCA"], found["MINE"], found["NCCL_SOCKET_IFNAME"]) == ("mlx5_7", "1", "eth0")


def test_the_network_wins_over_the_operators_variables() -> None:
    slow = {"tcp": {"env": {"TOKENIZERS_PARALLELISM": "true"}}}
    found = environment(named("tcp"), replace(SETTINGS, networks=slow))
    assert (found["TOKENIZERS_PARALLELISM"], found["NCCL_IB_DISABLE"]) == ("true", "1")


@pytest.mark.parametrize("changes", [ONE, CPUS, named("tcp", ONE), named("tcp", CPUS)], ids=str)
def test_pods_without_a_network_have_none_of_its_variables(changes: Json) -> None:
    assert [name for name in environment(changes) if name.startswith("NCCL")] == []


# Later runs


def pinned(name: str, **more: Any) -> Json:
    status = accepted(**more)
    status["resolved"]["network"] = name
    return status


def next_run(status: Json, changes: Json, settings: PlanSettings) -> Any:
    gone = seen(changes, status={**status, "retry": None})
    return plan(gone, replace(settings, backoff_seconds=0), NOW, BACKEND)


def test_later_runs_keep_the_network_that_the_job_was_accepted_with() -> None:
    """The administrator's default is another one by now."""
    answer = next_run(pinned("coreweave-ib"), {"network.profile": "auto"}, by_default(every="tcp"))
    assert created(answer) == ["sample-1"]
    manifest = answer.actions[0].manifest
    assert networks.pod(manifest)["spec"]["containers"][0]["resources"]["limits"]["rdma/ib"] == "1"


REASON_OF_0_1 = "No faster network is configured for this gpu_type."
EARLIER: dict[str, Json] = {
    "version 0.1.0 called everything tcp": {
        "resolved": {"network": "tcp"}, "network": {"profile": "tcp", "reason": REASON_OF_0_1}},
    "the reason is gone": {"resolved": {"network": "tcp"}, "network": None},
    "nothing is pinned": {"resolved": {"network": None}, "network": None},
}  # fmt: skip


@pytest.mark.parametrize("case", EARLIER)
@pytest.mark.parametrize("settings", [BARE, by_default(every="aws-efa")], ids=["bare", "a default"])
@pytest.mark.parametrize(("profile", "variables"), [(None, {}), ("auto", {}), ("tcp", {"NCCL_IB_DISABLE": "1"})])
@pytest.mark.parametrize("contract", [True, False], ids=["with a contract", "without"])
def test_a_job_of_an_earlier_version_gets_the_pods_that_it_had(
    case: str, settings: PlanSettings, profile: str | None, variables: dict[str, str], contract: bool
) -> None:
    """Version 0.1.0 knew no networks. Jobs that it accepted in tests/guards/previous-version."""
    status = accepted()
    status["resolved"] |= EARLIER[case]["resolved"]
    status["network"] = EARLIER[case]["network"]
    if contract:
        pinned_ = json.loads(status["resolved"]["contract"])
        status["resolved"]["contract"] = json.dumps({**pinned_, "env": pinned_["env"] | variables})
    else:
        status["resolved"].pop("contract")
    answer = next_run(status, {"network.profile": profile}, settings)
    assert created(answer) == ["sample-1"]
    [container] = networks.pod(answer.actions[0].manifest)["spec"]["containers"]
    assert {e["name"]: e["value"] for e in container["env"] if e["name"].startswith("NCCL")} == variables
    assert set(container["resources"]["limits"]) <= {"nvidia.com/gpu", "memory"}


def test_a_job_that_names_a_profile_has_it_although_its_status_was_lost() -> None:
    status = {**accepted(), "network": None}
    status["resolved"].pop("network")
    for nodes, limits in ((2, {"nvidia.com/gpu", "rdma/ib"}), (1, {"nvidia.com/gpu"})):
        [action] = next_run(status, {"network.profile": "coreweave-ib", "compute.nodes": nodes}, BARE).actions
        assert set(networks.pod(action.manifest)["spec"]["containers"][0]["resources"]["limits"]) == limits


def test_a_job_that_said_tcp_keeps_it() -> None:
    [action] = next_run(pinned("tcp"), {"network.profile": None}, BARE).actions
    [container] = networks.pod(action.manifest)["spec"]["containers"]
    assert {"name": "NCCL_IB_DISABLE", "value": "1"} in container["env"]


def test_an_edited_layout_takes_no_network_away_from_the_pods_that_were_pinned() -> None:
    """Later runs keep both."""
    for edit in ({"compute.nodes": 1}, {"compute.gpu_count": None, "compute.gpus_per_node": 2}):
        answer = next_run(pinned("gke-gib"), {"network.profile": "gke-gib", **edit}, SETTINGS)
        assert created(answer) == ["sample-1"]
        [container] = networks.pod(answer.actions[0].manifest)["spec"]["containers"]
        assert {"name": "NCCL_NET", "value": "gIB"} in container["env"]


def test_later_runs_keep_annotations_that_have_become_reserved() -> None:
    """Jobs of earlier versions got fast networks by them."""
    annotations = {"k8s.v1.cni.cncf.io/networks": "rdma"}
    answer = next_run(pinned("tcp"), {"pods.annotations": annotations}, BARE)
    assert created(answer) == ["sample-1"]
    assert annotations.items() <= networks.pod(answer.actions[0].manifest)["metadata"]["annotations"].items()


def test_a_network_that_is_gone_keeps_the_next_run_waiting() -> None:
    answer = next_run(pinned("ours"), {"network.profile": "ours"}, BARE)
    assert created(answer) == []
    assert condition(answer, "PodsReady") == ("False", "UnknownNetwork")
    [said] = [c.message for c in answer.status.conditions or () if c.type == "PodsReady"]
    assert "The job was accepted with the network profile ours, which is gone. Have settings.networks name" in said


def test_a_job_that_waits_starts_when_nodes_show_their_network() -> None:
    waiting = seen({"network.profile": None})
    before = decided(replace(waiting, nodes=Nodes((NodeClass(H100),)))).status.model_dump(mode="json")
    shown = seen({"network.profile": None}, status=before)
    answer = decided(replace(shown, nodes=Nodes((COREWEAVE,))))
    assert (created(answer), condition(answer, "Accepted")[0]) == (["sample-1"], "True")
    assert answer.status.network is not None
    assert answer.status.network.profile == "coreweave-ib"


def test_nodes_are_alike_that_differ_in_what_no_profile_asks_for() -> None:
    nodes = [
        NodeClass({**H100, "kubernetes.io/hostname": name}, frozenset({"cpu", *more}))
        for name, more in (("a", {EFA}), ("b", {EFA, "memory"}), ("c", set()))
    ]
    assert node_classes(nodes, BARE) == (replace(AWS, count=2), NodeClass(H100))


def test_a_job_is_refused_when_nothing_decides_and_nodes_have_no_say() -> None:
    answer = decided(seen({"network.profile": None}))
    assert (created(answer), condition(answer, "Accepted")) == ([], ("False", "NetworkUndecided"))
    assert (answer.status.phase, answer.requeue_after) == ("Failed", None)
