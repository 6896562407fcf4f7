"""What every backend has to do on a real cluster. The test plays the nodes; the controllers are the real ones."""

from __future__ import annotations

from collections.abc import Iterable

from backends.conftest import Served
from builders import Json, put
from finetune_api.resource import names
from finetune_api.runtime import protocol
from finetune_api.runtime.exits import Exit
from finetune_api.validation.predicates import find
from finetune_operator import transform
from finetune_plan.resolve import validate
from finetune_plan.settings import PlanSettings
from finetune_plan.workload import RENDEZVOUS_PORT, Workload, rendezvous, workload
from operating.team import SMALL, Team, condition, message
from testbed.watch import wait_for, wait_for_all

RUN = "sample-1"
NODES = 2
HOLD = "tests.example/hold"


# Objects


def create(team: Team, changes: Json | None = None) -> tuple[Workload, Json]:
    """A run as the operator would create it: the workload, and the object as the server took it."""
    owner = team.submit(changes)
    resolution = validate(owner, PlanSettings()).resolution
    assert resolution is not None
    work = workload(resolution, PlanSettings(), 1, owner["metadata"]["uid"])
    reference = {k: owner[k] for k in ("apiVersion", "kind")} | {k: owner["metadata"][k] for k in ("name", "uid")}
    return work, team.api.create(
        team.backend.render(work, team.namespace, reference | {"controller": True, "blockOwnerDeletion": True})
    )


def trainer(team: Team, pod: Json) -> Json:
    [found] = [c for c in pod["spec"]["containers"] if c["name"] == team.backend.container]
    return dict(found)


def environment(team: Team, pod: Json) -> dict[str, str]:
    """Variables as the kubelet would set them; later ones count."""
    return {e["name"]: e["value"] if "value" in e else _field(pod, e) for e in trainer(team, pod)["env"]}


def _field(pod: Json, variable: Json) -> str:
    kind, _, key = variable["valueFrom"]["fieldRef"]["fieldPath"].removesuffix("']").partition("['")
    return str(find(pod, kind)[key])


def hosts(pod: Json, services: Iterable[Json]) -> set[str]:
    """Names that lead to a pod: of the Services that select it alone, and its own below its subdomain."""
    labels = pod["metadata"]["labels"].items()
    wanted = {s["metadata"]["name"]: s["spec"].get("selector") for s in services}
    selecting = {name for name, selector in wanted.items() if selector and selector.items() <= labels}
    own = ".".join(pod["spec"].get(key, "") for key in ("hostname", "subdomain"))
    return selecting | {own}


def hold(team: Team, pod: Json, *, keep: bool) -> None:
    """Add a finalizer of our own to a pod, or take it away: it stays as one whose node does not answer."""
    path = f"{team.pods}/{pod['metadata']['name']}"
    others = [f for f in team.api.get(path)["metadata"].get("finalizers", []) if f != HOLD]
    team.api.patch(path, {"metadata": {"finalizers": [*others, *([HOLD] if keep else [])]}})


def quota(team: Team, pods: int) -> None:
    metadata = {"name": "few", "namespace": team.namespace}
    spec = {"hard": {"pods": str(pods)}}
    team.api.create({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": spec})
    wait_for(team.api, f"/api/v1/namespaces/{team.namespace}/resourcequotas/few", lambda q: q and q.get("status"))


# The object and its pods


def test_a_run_becomes_pods_with_the_workloads_labels_one_for_each_node_rank(team: Team) -> None:
    work, run = create(team)
    pods = team.until_run(RUN, NODES)
    assert [team.backend.node_rank(pod) for pod in pods] == [0, 1]
    called = [pod["metadata"]["name"] for pod in pods]
    fits = [[team.backend.names_pod(RUN, rank, name) for name in called] for rank in (0, 1)]
    assert fits == [[True, False], [False, True]], "each pod has a name of its own rank"
    assert [name for name in called if team.backend.names_pod("sample-11", 0, name)] == []
    assert [pod for pod in pods if not work.labels.items() <= pod["metadata"]["labels"].items()] == []
    assert run["metadata"]["labels"][names.JOB_UID_LABEL] == work.labels[names.JOB_UID_LABEL]
    owners = {o["uid"] for pod in pods for o in pod["metadata"]["ownerReferences"] if o.get("controller")}
    assert owners == {run["metadata"]["uid"]}
    counted = [*(transform.owned_pod(pod, team.backend) for pod in pods), transform.owned_run(run, team.backend)]
    assert [each and each.owner.name for each in counted] == [RUN, RUN, "sample"]


def test_the_trainers_container_is_as_the_workload_says_and_runs_once(team: Team) -> None:
    work, _ = create(team)
    for pod in team.until_run(RUN, NODES):
        container = trainer(team, pod)
        assert (container["image"], container["command"]) == (work.image, list(work.contract.command))
        assert pod["metadata"]["annotations"][names.RUN_CONFIG_ANNOTATION] == work.config_json
        assert pod["spec"]["restartPolicy"] == "Never"
        assert not pod["spec"].get("initContainers")


def test_every_pod_knows_its_rank_and_where_rank_0_is(team: Team) -> None:
    work, _ = create(team)
    first, *others = team.until_run(RUN, NODES)
    address = team.backend.host(RUN, 0)
    for rank, pod in enumerate((first, *others)):
        wanted = rendezvous(work, rank, address, RENDEZVOUS_PORT)
        said = environment(team, pod)
        assert {name: said.get(name) for name in wanted} == wanted
        assert said[protocol.CONFIG_ENV] == work.env[protocol.CONFIG_ENV]
    services = wait_for_all(
        team.api,
        f"/api/v1/namespaces/{team.namespace}/services",
        lambda found: address in hosts(first, found),
    )
    assert [pod["metadata"]["name"] for pod in others if address in hosts(pod, services)] == []


def test_a_run_is_observed_as_it_is(team: Team) -> None:
    _, run = create(team)
    seen = team.backend.observe(run)
    assert (seen.name, seen.number, seen.uid) == (RUN, 1, run["metadata"]["uid"])
    assert (seen.deleting, seen.suspended, seen.over, team.backend.is_reconciled(run)) == (False,) * 4
    wait_for(team.api, f"{team.runs}/{RUN}", lambda found: found and team.backend.is_reconciled(found))


def test_a_run_waits_for_its_queue_which_gives_takes_and_gives_again_its_pods(team: Team) -> None:
    _, run = create(team, {"queue.name": "research"})
    assert team.backend.observe(run).suspended
    wait_for(team.api, f"{team.runs}/{RUN}", lambda found: found and found.get("status"))
    assert team.api.items(team.pods) == []
    for suspend, pods in ((False, NODES), (True, 0), (False, NODES)):
        body: Json = {}
        put(body, team.backend.suspend_key, suspend)
        run = team.api.patch(f"{team.runs}/{RUN}", body)
        assert team.backend.observe(run).suspended is suspend
        team.until_run(RUN, pods)


def test_a_deleted_run_stays_until_the_last_of_its_pods_is_gone(team: Team) -> None:
    create(team)
    pods = team.until_run(RUN, NODES)
    hold(team, pods[1], keep=True)
    team.api.request("DELETE", f"{team.runs}/{RUN}", {"propagationPolicy": "Foreground"})
    wait_for_all(team.api, team.pods, lambda found: len(found) == 1)
    assert team.backend.observe(team.api.get(f"{team.runs}/{RUN}")).deleting
    hold(team, pods[1], keep=False)
    team.until_gone(team.runs)
    assert team.api.items(team.pods) == []


def test_a_deleted_job_takes_its_run_and_its_pods_with_it(team: Team) -> None:
    create(team)
    team.until_run(RUN, NODES)
    team.api.request("DELETE", f"{team.jobs}/sample", {"propagationPolicy": "Background"})
    team.until_gone(team.runs)
    team.until_gone(team.pods)


def test_a_refused_pod_is_told_in_an_event_that_leads_to_its_run(team: Team) -> None:
    quota(team, 1)
    _, run = create(team)
    path = f"/api/v1/namespaces/{team.namespace}/events"
    found = wait_for_all(team.api, path, lambda events: events, fieldSelector=f"reason={team.backend.refusal_reason}")
    assert {team.backend.refused_run(event) for event in found} == {(RUN, run["metadata"]["uid"])}
    assert "exceeded quota: few" in found[0]["message"]
    stranger = found[0] | {"involvedObject": found[0]["involvedObject"] | {"kind": "ReplicaSet"}}
    assert team.backend.refused_run(stranger) is None
    assert team.backend.refused_run(found[0] | {"source": {"component": "somebody"}}) is None


# The operator over the backend, with the rights that it declares


def test_the_operator_serves_a_job_over_the_backend_with_the_declared_rights_and_needs_each(served: Served) -> None:
    try:
        for life in (fails_is_paused_and_succeeds, loses_a_pod_by_force, is_short_of_quota, is_deleted_while_it_runs):
            life(served.team)
    finally:
        assert served.denied() == []
    assert served.idle() == []


def fails_is_paused_and_succeeds(team: Team) -> None:
    team.submit(name="whole")
    team.start("whole-1", "whole")
    team.end(team.until_run("whole-1")[1]["metadata"]["name"], Exit.CRASHED, "boom")
    status = team.until(lambda s: s.get("restarts") == 1, "whole")
    assert ": boom. " in message(status, "Training")
    team.start("whole-2", "whole")
    team.edit({"suspend": True}, "whole")
    team.until_phase("Suspended", "whole")
    team.until_gone(team.runs)
    team.until_gone(team.pods)
    team.edit({"suspend": False}, "whole")
    team.start("whole-3", "whole")
    for pod in reversed(team.until_run("whole-3")):
        team.end(pod["metadata"]["name"])
    status = team.until_phase("Succeeded", "whole")
    assert (status["run"], status["restarts"]) == (3, 1)
    wait_for(team.api, f"{team.runs}/whole-3", lambda run: run and team.backend.observe(run).over)


def loses_a_pod_by_force(team: Team) -> None:
    """The gang starts again, at no cost."""
    team.submit(name="robbed")
    team.start("robbed-1", "robbed")
    victim = team.until_run("robbed-1")[1]["metadata"]["name"]
    team.api.request("DELETE", f"{team.pods}/{victim}", {"gracePeriodSeconds": 0})
    team.start("robbed-2", "robbed")
    assert not team.status("robbed").get("restarts")
    team.edit({"cancel": True}, "robbed")
    team.until_phase("Cancelled", "robbed")
    wait_for(team.api, f"{team.runs}/robbed-2", lambda found: found is None)


def is_short_of_quota(team: Team) -> None:
    quota(team, 1)
    team.submit(name="large")
    status = team.until(lambda s: condition(s, "PodsReady")[1] == "QuotaExceeded", "large")
    assert "exceeded quota: few" in message(status, "PodsReady")
    team.api.delete(f"/api/v1/namespaces/{team.namespace}/resourcequotas/few")
    team.edit({"cancel": True}, "large")
    team.until_phase("Cancelled", "large")


def is_deleted_while_it_runs(team: Team) -> None:
    team.submit(SMALL, name="short")
    [pod] = team.until_run("short-1", 1)
    team.api.delete(f"{team.jobs}/short")
    wait_for(team.api, f"{team.pods}/{pod['metadata']['name']}", lambda found: found is None)
