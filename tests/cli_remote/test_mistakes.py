"""Deliberate mistakes, verb by verb: each is answered with what is wrong and the way out, and never a traceback."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from builders import resource
from cli.calls import ROW
from cli_remote.calls import Console
from finetune_api.codegen.crd import crd
from finetune_cli.errors import InvalidInput
from finetune_cli.remote import fetching
from operating.team import SMALL, Team
from testbed.api import ApiError, Json
from testbed.cluster import Cluster, write_private
from testbed.control_plane import ControlPlane
from testbed.process import free_port

ONE_JOB = ("status", "watch", "logs", "suspend", "resume", "cancel", "delete", "diagnose", "fetch")
EVERY = ("list", *(f"{verb} sample" for verb in ONE_JOB), "submit job.yaml")


def answered(told: str, path: str, reason: str, message: str, remedy: str) -> None:
    """The output is one problem, with these words in it."""
    found = re.findall(
        rf"^error: {re.escape(path)}: (.*?) \[{reason}\]\n  remedy: (.*)$", told, re.MULTILINE | re.DOTALL
    )
    assert len(found) == 1, told
    assert message in found[0][0], told
    assert remedy in found[0][1], told
    assert "Traceback" not in told


@pytest.mark.parametrize("verb", ONE_JOB)
def test_a_job_that_is_not_there(team: Team, console: Console, verb: str) -> None:
    team.submit({"suspend": True}, name="sample-2")
    done = console(verb, "sample")
    assert (done.code, done.out) == (2, "")
    message = f"The job sample does not exist in namespace {team.namespace}."
    answered(done.err, "finetunejob sample", "NotFound", message, "Did you mean sample-2? `finetune list` lists")


@pytest.mark.parametrize("call", EVERY)
def test_a_namespace_that_is_not_there(team: Team, console: Console, call: str) -> None:
    console.job()
    done = console(*call.split(), "-n", "nowhere", "--kubeconfig", str(console.kubeconfig), anywhere=True)
    assert (done.code, done.out) == (2, "")
    answered(
        done.err, "namespace nowhere", "NotFound", "The namespace nowhere does not exist.", "kubectl get namespaces"
    )


@pytest.mark.parametrize("call", EVERY)
def test_a_cluster_without_the_operator(bare: ControlPlane, tmp_path: Path, call: str) -> None:
    console = Console(bare.cluster.kubeconfig, "default", tmp_path)
    console.job()
    done = console(*call.split())
    assert (done.code, done.out) == (1, "")
    answered(
        done.err,
        "cluster",
        "NotInstalled",
        "The FinetuneJob resource is not installed in this cluster.",
        "Install the operator",
    )


@pytest.mark.parametrize("call", EVERY)
def test_rights_that_are_missing(team: Team, control_plane: ControlPlane, tmp_path: Path, call: str) -> None:
    nobody = control_plane.cluster.service_account(team.namespace, "nobody")
    console = Console(nobody, team.namespace, tmp_path)
    console.job()
    done = console(*call.split())
    assert (done.code, done.out) == (1, "")
    verb = {"list": "list", "submit job.yaml": "create"}.get(call, "get")
    message = f"system:serviceaccount:{team.namespace}:nobody may not {verb} finetunejobs in namespace"
    answered(done.err, "cluster", "Forbidden", message, "Ask the administrator of the cluster for this permission")


@pytest.mark.parametrize("call", EVERY)
def test_a_server_that_does_not_answer(console: Console, tmp_path: Path, call: str) -> None:
    console.job()
    dead = _kubeconfig(tmp_path, f"https://127.0.0.1:{free_port()}", {})
    done = console(*call.split(), "--kubeconfig", str(dead), anywhere=True)
    assert (done.code, done.out) == (1, "")
    answered(
        done.err, "cluster", "Unreachable", "does not answer: Connection refused.", "kubectl config current-context"
    )


def test_a_server_with_an_untrusted_certificate(
    control_plane: ControlPlane, console: Console, tmp_path: Path
) -> None:
    stranger = _kubeconfig(tmp_path, f"https://127.0.0.1:{control_plane.port}", {})
    done = console("list", "--kubeconfig", str(stranger), anywhere=True)
    assert done.code == 1
    answered(
        done.err,
        "cluster",
        "Unreachable",
        "its certificate is not trusted: self-signed certificate.",
        "kubectl config current-context",
    )


def test_a_login_that_is_not_known(control_plane: ControlPlane, console: Console, tmp_path: Path) -> None:
    trust = {"certificate-authority": str(control_plane.certificate)}
    wrong = _kubeconfig(tmp_path, f"https://127.0.0.1:{control_plane.port}", trust)
    done = console("list", "--kubeconfig", str(wrong), anywhere=True)
    assert done.code == 1
    answered(done.err, "cluster", "Unauthorized", "does not accept your credentials", "Log in to the cluster again")


LOGINS = {
    "a kubeconfig that is not there": (
        ("--kubeconfig", "none"), "--kubeconfig none", "the file none does not exist.", "Give --kubeconfig",
    ),
    "a kubeconfig that is no YAML": (
        ("--kubeconfig", "rows.jsonl.broken"), "--kubeconfig rows.jsonl.broken", "No cluster is configured",
        "Give --kubeconfig",
    ),
    "an empty kubeconfig": (
        ("--kubeconfig", "empty"), "--kubeconfig empty", "No cluster is configured", "Give --kubeconfig",
    ),
    "a context that is not there": (
        ("--kubeconfig", "good", "--context", "prod"), "--context",
        "The context prod cannot be used: it does not exist; the contexts are test.", "kubectl config get-contexts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LOGINS)
def test_a_kubeconfig_that_cannot_be_used(case: str, console: Console) -> None:
    arguments, path, message, remedy = LOGINS[case]
    (console.folder / "rows.jsonl.broken").write_text("{[")
    (console.folder / "empty").write_text("")
    (console.folder / "good").write_text(console.kubeconfig.read_text())
    done = console("list", *arguments, anywhere=True)
    assert (done.code, done.out) == (2, "")
    answered(done.err, path, "BadKubeconfig", message, remedy)


STRUCTURE = "the file does not have the structure of a kubeconfig."
STRUCTURES = {
    "a word": "x",
    "a list": "[]",
    "a number": "5",
    "clusters that are no list": "clusters: 3",
    "a context that is no map": "{contexts: [{name: a, context: 3}], clusters: [3], current-context: a}",
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_yaml_that_is_no_kubeconfig(case: str, tmp_path: Path) -> None:
    (tmp_path / "k").write_text(STRUCTURES[case])
    done = Console(tmp_path / "k", "default", tmp_path)("list")
    assert (done.code, done.out) == (2, "")
    answered(done.err, f"--kubeconfig {tmp_path}/k", "BadKubeconfig", STRUCTURE, "Give --kubeconfig")


@pytest.mark.parametrize(
    "address", ["not a url", "https://not a url", "https://a:99999", "https://", "localhost:6443", "ftp://a"]
)
def test_an_address_that_is_malformed(address: str, tmp_path: Path) -> None:
    done = Console(_kubeconfig(tmp_path, address, {}), "default", tmp_path)("list")
    assert (done.code, done.out) == (2, "")
    message = f"the server's address {address.rstrip('/')!r} is malformed"
    answered(done.err, f"--kubeconfig {tmp_path}/strange", "BadKubeconfig", message, "Give --kubeconfig")


def test_a_kubeconfig_of_the_environment_that_is_not_there(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/none")
    done = console("list", anywhere=True)
    assert (done.code, done.out) == (2, "")
    message = "the file /none does not exist, and this process does not run in a pod"
    answered(done.err, "kubeconfig", "BadKubeconfig", message, "Give --kubeconfig")


SUBMITTED: dict[str, tuple[tuple[str, str] | None, tuple[str, ...], tuple[str, str, str, str]]] = {
    "an unknown key": (("gpu_type", "gpu_typ"), (),
        ("spec.compute.gpu_typ", "UnknownKey", "'gpu_typ' is not a key", "Did you mean spec.compute.gpu_type?")),
    "rows that are not there": (None, ("--dataset", "none.jsonl"),
        ("spec.job.data", "DataRefused", "none.jsonl: file not found.", "Correct the path")),
    "rows that cannot be trained on": (None, ("--dataset", "bad.jsonl"),
        ("spec.job.data", "DataRefused", "line 2: no trainable token", "Fix the rows")),
    "rows of this machine without --dataset": (("data: pvc://rows/train.jsonl", "data: good.jsonl"), (),
        ("spec.job.data", "NotOnCluster", "good.jsonl is a file of this machine", "Give --dataset with this file")),
    "validation rows of this machine": (None, ("--set", "data.validation_path=good.jsonl"),
        ("spec.data.validation_path", "NotOnCluster", "which pods of a cluster cannot read", "pvc://CLAIM/PATH")),
    "a model folder of this machine": (None, ("--model", "./model"),
        ("spec.job.model", "NotOnCluster", "./model is a file of this machine", "put the folder on a claim")),
    "many rows and no volume": (("{uri: pvc://models/out}", "{ephemeral: true}"),
        ("--dataset", "many.jsonl"),
        ("spec.job.data", "NoVolume", "too large for a ConfigMap", "Set output.uri to pvc://CLAIM/PATH")),
    "two namespaces": (("name: sample", "name: sample\n  namespace: elsewhere"), (),
        ("metadata.namespace", "NamespaceContradiction", "The namespace is elsewhere in the file", "Remove one")),
    "a file that is not there": (None, ("MISSING",),
        ("none.yaml", "NotReadable", "No such file or directory", "Name a file that can be read")),
}  # fmt: skip
"""What is changed in the job, further arguments, and the problem: path, reason, message, remedy."""


@pytest.mark.parametrize("case", SUBMITTED)
def test_problems_of_a_job_are_reported_before_anything_is_sent(case: str, team: Team, console: Console) -> None:
    change, more, expected = SUBMITTED[case]
    changes = [change] if change else []
    file = console.job(*changes)
    console.rows(name="good.jsonl")
    console.rows(name="many.jsonl", width=1 << 20)
    (console.folder / "bad.jsonl").write_text(ROW + '{"messages": [{"role": "user", "content": "1+1?"}]}\n')
    (console.folder / "model").mkdir()
    done = console("submit", "none.yaml") if more == ("MISSING",) else console("submit", file, *more)
    assert (done.code, done.out) == (2, ""), done.err
    answered(done.err, *expected)
    assert team.api.items(team.jobs) == []
    assert [m["metadata"]["name"] for m in team.api.items(_config_maps(team))] in ([], ["kube-root-ca.crt"])


def test_a_name_that_is_taken(team: Team, console: Console) -> None:
    team.submit({"suspend": True})
    team.until_phase("Suspended")
    for more in ((), ("--dataset", console.rows()), ("--dry-run",)):
        done = console("submit", console.job(), *more)
        assert (done.code, done.out) == (2, "")
        message = f"The job sample already exists in namespace {team.namespace}; it is Suspended."
        answered(done.err, "finetunejob sample", "AlreadyExists", message, "finetune delete sample")
    assert team.api.get(f"{team.jobs}/sample")["spec"]["job"]["model"] == "Qwen/Qwen3-4B"


def test_a_job_that_a_policy_of_the_cluster_refuses(team: Team, console: Console, no_examples: str) -> None:
    done = console("submit", console.job(), "--dataset", console.rows(), "--examples", "3")
    assert (done.code, done.out) == (2, "")
    answered(done.err, f"policy {no_examples}", "Denied", "Smoke tests go to the other cluster.", "Change the job")
    assert team.api.items(team.jobs) == []


def test_a_job_that_the_schema_of_the_server_refuses(strict: ControlPlane, tmp_path: Path) -> None:
    """A server with another version of the resource: what passes here may be refused there."""
    console = Console(strict.cluster.kubeconfig, "default", tmp_path)
    done = console("submit", console.job(), "--set", "hyperparameters.learning_rate=0.5")
    assert (done.code, done.out) == (2, "")
    key, message = "hyperparameters.learning_rate", "should be less than or equal to 0.1"
    answered(done.err, f"spec.{key}", "FieldValueInvalid", message, f"See `finetune explain {key}`.")


def test_a_verdict_that_depends_on_the_operators_settings_is_left_to_the_operator(
    team: Team, console: Console
) -> None:
    done = console("submit", console.job(("gpu_type: CPU", "gpu_type: X9000")))
    assert done.code == 2
    assert "note: 'X9000' is not an accelerator known here. The settings of this cluster may differ." in done.err
    assert "[UnknownGpuType]\n  remedy: Correct the job: delete it and submit it again" in done.err
    assert team.status()["phase"] == "Failed"


def test_a_network_that_only_the_operator_knows_is_left_to_the_operator(team: Team, console: Console) -> None:
    job = console.job(("gpu_type: CPU", "gpu_type: H100"))
    done = console("submit", job, "--set", "compute.nodes=2", "--set", "network.profile=ours")
    assert done.code == 2
    assert "note: 'ours' is no network profile known here. The settings of this cluster may differ." in done.err
    assert "[UnknownNetwork]\n  remedy: Correct the job: delete it and submit it again" in done.err


def test_a_network_that_nodes_may_still_show_is_waited_for(team: Team, console: Console) -> None:
    job = console.job(("gpu_type: CPU", "gpu_type: H100"))
    done = console("submit", job, "--set", "compute.nodes=2")
    assert done.code == 0
    message = "No node with H100 is ready and schedulable. Have the administrator set settings.defaultNetworks"
    assert "The job is not accepted yet: " in done.err
    assert message in done.err
    assert "finetune watch" in done.err
    assert team.status()["phase"] == "Queued"
    found = console("diagnose", "sample")
    assert "[NetworkUndecided]" in found.err + found.out
    assert "refused" not in found.err + found.out


def test_a_network_that_a_job_contradicts_is_left_to_the_operator(team: Team, console: Console) -> None:
    """Its settings may have a profile of that name for pods with fewer GPUs."""
    job = console.job(("gpu_type: CPU", "gpu_type: H100"))
    done = console("submit", job, "--set", "compute.nodes=2", "--set", "network.profile=gke-gib")
    assert "note: The network profile gke-gib is for pods with all 8 GPUs of a node" in done.err
    assert team.status()["phase"] == "Failed", "the operator's settings have none"


def test_a_job_that_has_ended_cannot_be_suspended_resumed_or_cancelled(team: Team, console: Console) -> None:
    team.submit({"cancel": True})
    team.until_phase("Cancelled")
    for verb, done_word in (("suspend", "suspended"), ("resume", "resumed"), ("cancel", "cancelled")):
        done = console(verb, "sample")
        assert done.code == 2
        message = f"The job has ended (Cancelled) and cannot be {done_word}."
        answered(done.err, "finetunejob sample", "Ended", message, "submit it under another name")


def test_a_result_that_was_not_kept(team: Team, console: Console) -> None:
    team.submit(SMALL)
    team.start(pods=1)
    team.end("sample-1-worker-0")
    team.until_phase("Succeeded")
    done = console("fetch", "sample")
    assert (done.code, done.out) == (2, "")
    message, remedy = "The job has no output.uri", "--output pvc://CLAIM/PATH"
    answered(done.err, "finetunejob sample", "OutputNotKept", message, remedy)


def test_a_result_in_a_folder_of_a_pod_of_an_older_job() -> None:
    done = {"completionTime": "2026-01-01T00:00:00Z", "conditions": [{"type": "Complete", "status": "True"}]}
    with pytest.raises(InvalidInput) as error:
        fetching.result_location(resource({"output.uri": "/data/out"}) | {"status": done})
    [problem] = error.value.problems
    assert (problem.path, problem.reason) == ("finetunejob sample", "NotOnAClaim")
    assert problem.message.startswith("The result is at /data/out")
    assert problem.remedy.startswith("Download /data/out/result with")


def test_a_result_before_the_end_and_onto_what_is_there(team: Team, console: Console) -> None:
    team.submit()
    team.start()
    done = console("fetch", "sample")
    assert done.code == 2
    answered(done.err, "finetunejob sample", "NotSucceeded", "The job has no result: it is ", "finetune watch sample")
    team.end("sample-1-worker-0")
    team.until_phase("Succeeded")
    (console.folder / "sample-result").mkdir()
    done = console("fetch", "sample")
    assert done.code == 2
    answered(done.err, "--to sample-result", "Exists", "sample-result already exists.", "Give --to with a new")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A cluster that does not know our resource."""
    with ControlPlane(tmp_path_factory.mktemp("bare")) as plane:
        yield plane


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A cluster whose version of our resource allows less."""
    manifest = crd()
    [version] = manifest["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["hyperparameters"]["properties"]["learning_rate"]["maximum"] = 0.1
    with ControlPlane(tmp_path_factory.mktemp("strict"), crds=[manifest]) as plane:
        yield plane


@pytest.fixture
def no_examples(cluster: Cluster, namespace: str) -> Iterator[str]:
    """An administrator's policy against jobs with data.examples in this namespace."""
    name = f"no-examples-{namespace}"
    rules = [{"apiGroups": ["finetune.dev"], "apiVersions": ["*"], "operations": ["CREATE"],
              "resources": ["finetunejobs"]}]  # fmt: skip
    check = {"expression": "!has(object.spec.data) || !has(object.spec.data.examples)",
             "message": "Smoke tests go to the other cluster."}  # fmt: skip
    group, only = "admissionregistration.k8s.io/v1", {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    policy: Json = {"matchConstraints": {"resourceRules": rules}, "validations": [check]}
    binding: Json = {"policyName": name, "validationActions": ["Deny"], "matchResources": {"namespaceSelector": only}}
    paths = []
    for kind, plural, spec in (("", "policies", policy), ("Binding", "policybindings", binding)):
        collection = f"/apis/{group}/validatingadmission{plural}"
        body: Json = {"apiVersion": group, "kind": f"ValidatingAdmissionPolicy{kind}", "metadata": {"name": name}}
        cluster.api.request("POST", collection, body | {"spec": spec})
        paths.append(f"{collection}/{name}")
    _await_policy(cluster, namespace)
    yield name
    for path in reversed(paths):
        cluster.api.delete(path)


def _await_policy(cluster: Cluster, namespace: str) -> None:
    """The server takes a moment to put a policy in force."""
    body = resource({"data.examples": 1}, name="probe")
    body["metadata"]["namespace"] = namespace
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        try:
            cluster.api.create(body, dryRun="All")
        except ApiError:
            return
        time.sleep(0.1)
    raise AssertionError("the policy is not in force")


def _config_maps(team: Team) -> str:
    return f"/api/v1/namespaces/{team.namespace}/configmaps"


def _kubeconfig(folder: Path, server: str, cluster: Json) -> Path:
    """A kubeconfig with a token that nobody knows."""
    document: Json = {
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "x", "user": {"token": "unknown"}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    }  # fmt: skip
    return write_private(folder / "strange", json.dumps(document))
