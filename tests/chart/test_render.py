"""What the chart makes of values: every combination is legal, and a value that nobody knows is refused by name."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from builders import Json
from chart.helm import CHART, NAME, environment, find, notes, render
from finetune_api.codegen import crd, policy
from finetune_api.resource.names import LEASE
from finetune_operator import helm_chart
from finetune_operator.settings import Settings
from finetune_plan.accelerators import Accelerator

ROOT = CHART.parents[1]
ONE_NAMESPACE: Json = {"settings": {"watchNamespace": "team-a"}}
EVERYTHING: Json = {
    "image": {"digest": f"sha256:{'0' * 64}", "repository": "cache.example/operator", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "pull"}],
    "serviceAccount": {"name": "me", "annotations": {"a": "b"}},
    "metrics": {
        "service": {"enabled": True, "annotations": {"prometheus.io/scrape": "true"}},
        "podMonitor": {"enabled": True, "labels": {"team": "ml"}, "interval": "15s"},
    },
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"pool": "cpu"},
    "tolerations": [{"key": "cpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "podAnnotations": {"note": "1"},
    "podLabels": {"team": "ml"},
}
NOTHING: Json = {
    "crds": {"install": False},
    "admissionPolicy": {"install": False},
    "rbac": {"userRoles": False},
    "serviceAccount": {"create": False, "name": "theirs"},
}
MATRIX: dict[str, Json] = {
    "the whole cluster": {},
    "one namespace": ONE_NAMESPACE,
    "every optional part": EVERYTHING,
    "every optional part in one namespace": EVERYTHING | ONE_NAMESPACE,
    "no optional part": NOTHING,
}
AGGREGATED = "rbac.authorization.k8s.io/aggregate-to-"


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_helm_has_nothing_to_object(values: Json) -> None:
    said = helm_python.lint(CHART, values, strict=True)
    assert [m["error"] for m in said["messages"]] == ["icon is recommended"]
    assert said["errors"] == []


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        pytest.param({}, {"ClusterRole": 3, "ClusterRoleBinding": 1, "Role": 1, "RoleBinding": 1}, id="cluster"),
        pytest.param(ONE_NAMESPACE, {"ClusterRole": 2, "Role": 2, "RoleBinding": 2}, id="one namespace"),
        pytest.param(NOTHING, {"ClusterRole": 1, "ClusterRoleBinding": 1, "Role": 1, "RoleBinding": 1}, id="least"),
        pytest.param(NOTHING | ONE_NAMESPACE, {"Role": 2, "RoleBinding": 2}, id="least in one namespace"),
    ],
)
def test_the_operators_roles_reach_as_far_as_it_serves(values: Json, kinds: dict[str, int]) -> None:
    found = [m["kind"] for m in render(values) if m["apiVersion"].startswith("rbac.")]
    assert {kind: found.count(kind) for kind in found} == kinds


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_no_role_speaks_of_secrets_or_of_everything(values: Json) -> None:
    roles = [m for m in render(values) if m["kind"] in ("Role", "ClusterRole")]
    words = {w for r in roles for rule in r["rules"] for part in rule.values() for w in part}
    assert words
    assert [w for w in words if "*" in w or "secret" in w] == []


@pytest.mark.parametrize("one_namespace", [False, True], ids=["the whole cluster", "one namespace"])
@pytest.mark.parametrize(("seconds", "verbs"), [({}, []), ({"deadNodeSeconds": 60}, ["delete"])], ids=["off", "on"])
def test_pods_may_be_deleted_only_where_that_is_switched_on(
    seconds: Json, verbs: list[str], *, one_namespace: bool
) -> None:
    where = ONE_NAMESPACE["settings"] if one_namespace else {}
    roles = [m for m in render({"settings": where | seconds}) if "rules" in m]
    found = [v for m in roles for r in m["rules"] if "pods" in r["resources"] for v in r["verbs"]]
    assert [v for v in found if v not in ("get", "list", "watch")] == verbs


@pytest.mark.parametrize("one_namespace", [False, True], ids=["the whole cluster", "one namespace"])
@pytest.mark.parametrize(("read", "verbs"), [({}, []), ({"readNodes": True}, ["list"])], ids=["off", "on"])
def test_nodes_may_be_listed_only_where_that_is_switched_on(
    read: Json, verbs: list[str], *, one_namespace: bool
) -> None:
    manifests = render({"settings": (ONE_NAMESPACE["settings"] if one_namespace else {}) | read})
    found = [(m["kind"], r["verbs"]) for m in manifests for r in m.get("rules", []) if "nodes" in r["resources"]]
    assert found == [("ClusterRole", each) for each in [verbs] if each]
    bound = [m["roleRef"]["name"] for m in manifests if m["kind"] == "ClusterRoleBinding"]
    assert (f"{NAME}-nodes" in bound) == bool(verbs)


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_the_rights_in_one_namespace_lie_there(values: Json) -> None:
    where = values.get("settings", {}).get("watchNamespace", "prod")
    found = [m for m in render(values) if m["kind"] in ("Role", "RoleBinding")]
    assert {m["metadata"]["namespace"] for m in found} == {where}
    assert {s["namespace"] for m in found for s in m.get("subjects", [])} == {"prod"}


def test_the_heartbeat_lies_where_the_watch_sees_it() -> None:
    assert environment(render())["FINETUNE_OPERATOR_OWN_NAMESPACE"] == "prod"
    assert environment(render(ONE_NAMESPACE))["FINETUNE_OPERATOR_OWN_NAMESPACE"] == "team-a"
    rules = [r for m in render() for r in m.get("rules", []) if r["resources"] == ["leases"]]
    assert {name for r in rules for name in r.get("resourceNames", [LEASE])} == {LEASE}


def test_the_definition_and_the_policy_are_the_generated_ones_and_stay() -> None:
    for wanted in (crd.crd(), policy.policy(), policy.binding()):
        found = find(render(), wanted["kind"], wanted["metadata"]["name"])
        assert found["metadata"].pop("annotations") == {
            "helm.sh/resource-policy": "keep",
            "argocd.argoproj.io/sync-options": "Prune=false",
        }
        assert found == json.loads(json.dumps(wanted))


def test_what_is_switched_off_is_not_there() -> None:
    kinds = {m["kind"] for m in render(NOTHING)}
    gone = {"CustomResourceDefinition", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    assert not kinds & (gone | {"ServiceAccount", "Service", "PodMonitor"})
    assert find(render(NOTHING), "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == "theirs"


def test_every_optional_part_arrives() -> None:
    manifests = render(EVERYTHING)
    pod = find(manifests, "Deployment")["spec"]["template"]
    spec = pod["spec"]
    assert spec["containers"][0]["image"] == f"cache.example/operator@sha256:{'0' * 64}"
    assert spec["containers"][0]["imagePullPolicy"] == "Always"
    for key in ("imagePullSecrets", "priorityClassName", "nodeSelector", "tolerations", "affinity"):
        assert spec[key] == EVERYTHING[key]
    assert pod["metadata"]["annotations"] == {"note": "1"}
    assert pod["metadata"]["labels"]["team"] == "ml"
    assert find(manifests, "ServiceAccount", "me")["metadata"]["annotations"] == {"a": "b"}
    monitor, service = find(manifests, "PodMonitor"), find(manifests, "Service", f"{NAME}-metrics")
    assert monitor["metadata"]["labels"]["team"] == "ml"
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "http", "interval": "15s"}]
    for selector in (monitor["spec"]["selector"]["matchLabels"], service["spec"]["selector"]):
        assert selector.items() <= pod["metadata"]["labels"].items()


def test_a_label_of_the_user_does_not_loosen_the_selector() -> None:
    deployment = find(render({"podLabels": {"app.kubernetes.io/name": "other"}}), "Deployment")
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_there_is_one_operator_at_a_time_with_time_to_finish() -> None:
    spec = find(render(), "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] == 30
    assert (container["livenessProbe"]["httpGet"]["path"], container["readinessProbe"]["httpGet"]["path"]) == (
        "/healthz",
        "/readyz",
    )
    assert container["ports"][0]["containerPort"] == int(environment(render())["FINETUNE_OPERATOR_HTTP_PORT"])


# Values


REFUSED: dict[str, tuple[Json, str]] = {
    "an unknown value": ({"replicas": 2}, "at '': additional properties 'replicas' not allowed"),
    "an unknown value of a part": ({"image": {"name": "x"}}, "at '/image': additional properties 'name' not allowed"),
    "an unknown setting": (
        {"settings": {"watch_namespace": "x"}},
        "at '/settings': additional properties 'watch_namespace' not allowed",
    ),
    "a setting of the chart's own": (
        {"settings": {"kubeconfig": "x"}},
        "at '/settings': additional properties 'kubeconfig' not allowed",
    ),
    "a word for a number": ({"settings": {"workers": "many"}}, "at '/settings/workers': got string, want integer"),
    "a number that is too small": ({"settings": {"workers": 0}}, "at '/settings/workers': minimum: got 0, want 1"),
    "a word that is no choice": ({"settings": {"logLevel": "loud"}}, "at '/settings/logLevel': value must be"),
    "a word for a switch": ({"crds": {"install": "no"}}, "at '/crds/install': got string, want boolean"),
    "a tag for a digest": ({"image": {"digest": "1.0"}}, "at '/image/digest': '1.0' does not match pattern"),
    "an unknown field of a network": (
        {"settings": {"networks": {"ours": {"hostIPC": True}}}},
        "at '/settings/networks/ours': additional properties 'hostIPC' not allowed",
    ),
    "a word for the volumes of a network": (
        {"settings": {"networks": {"ours": {"volumes": "/dev"}}}},
        "at '/settings/networks/ours/volumes': got string, want array",
    ),
    "an unknown key of an accelerator": (
        {"settings": {"accelerators": {"X1": {"products": [], "memory_gib": 8, "memory": 8}}}},
        "at '/settings/accelerators/X1': additional properties 'memory' not allowed",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_value_is_refused_by_name(values: Json, message: str) -> None:
    with pytest.raises(helm_python.HelmValuesError) as refused:
        render(values)
    assert message in str(refused.value)


def test_a_service_account_of_ones_own_has_to_be_named() -> None:
    with pytest.raises(helm_python.HelmError, match=r"serviceAccount\.name: name the ServiceAccount that is there"):
        render({"serviceAccount": {"create": False}})


OTHER: dict[str, Any] = {
    "watch_namespace": "team-a",
    "trainer_image": "cache.example/trainer:1",
    "service_accounts": ("s3", "gcs"),
    "accelerators": {
        "X1": Accelerator(("X1-80GB",), 80),
        "Y": Accelerator(("Y",), 8, "example.com/y", {"example.com/kind": ("y",)}),
    },
    "networks": {
        "aws-efa": {"values": {"devices": 16}},
        "ours": {
            "description": "<&>",
            "env": {"A": "${a}"},
            "parameters": {"a": {"description": "A."}},
            "hostNetwork": True,
        },
    },
    "default_networks": {"H100": "aws-efa", "*": "none"},
    "privileged_networks": ("ours", "oke-host"),
    "read_nodes": True,
    "shared_memory": "16Gi",
    "grace_period_seconds": 3000000,
    "workers": 3,
    "pass_seconds": 77.0,
    "backoff_seconds": 5.5,
    "max_backoff_seconds": 78.0,
    "max_free_restarts": 3,
    "eviction_seconds": 60,
    "dead_node_seconds": 900,
    "stall_seconds": 1200,
    "active_deadline_seconds": 86400,
    "ttl_seconds_after_finished": 3600,
    "progress_readers": 7,
    "progress_timeout_seconds": 2.5,
    "requests_per_second": 0.5,
    "request_burst": 10_000_000,
    "request_timeout_seconds": 7,
    "resync_seconds": 11,
    "progress_seconds": 13,
    "progress_reads_per_second": 17,
    "canary_seconds": 19,
    "canary_patience_seconds": 23,
    "http_host": "::",
    "log_level": "debug",
}
"""For every setting that is a value: something else than its default."""


def test_every_setting_arrives_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {*OTHER, *helm_chart.OF_THE_CHART} == set(Settings.model_fields)
    values = json.loads(
        json.dumps(Settings(**OTHER, own_namespace="team-a").model_dump(mode="json", include=set(OTHER)))
    )
    given = {helm_chart.value_name(name): value for name, value in values.items()}
    for name, value in environment(render({"settings": given})).items():
        monkeypatch.setenv(name, value)
    assert Settings() == Settings(**OTHER, own_namespace="team-a")


def test_a_setting_that_is_not_given_is_left_to_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(render()).items():
        monkeypatch.setenv(name, value)
    assert Settings() == Settings(own_namespace="prod")


def test_every_value_is_in_values_yaml_and_has_a_description() -> None:
    def walk(schema: Json, values: Json, path: str) -> None:
        assert set(values) == set(schema["properties"]), path
        for name, each in schema["properties"].items():
            assert each["description"], f"{path}.{name}"
            if name != "settings" and "default" not in each:
                walk(each, values[name], f"{path}.{name}")

    schema = json.loads((CHART / "values.schema.json").read_text())
    text = (CHART / "values.yaml").read_text()
    walk(schema, yaml.safe_load(text), "")
    for name, each in schema["properties"]["settings"]["properties"].items():
        assert f"  # {name}: {json.dumps(each.get('default', {}))}\n" in text
        assert each["description"].split(".")[0].split()[0] in text


def test_the_schema_allows_no_unknown_value_anywhere() -> None:
    def closed(schema: Json) -> bool:
        parts = schema.get("properties", {}).values()
        return ("properties" not in schema or schema["additionalProperties"] is False) and all(map(closed, parts))

    assert closed(json.loads((CHART / "values.schema.json").read_text()))


def test_a_stale_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for path in (helm_chart.SCHEMA, helm_chart.VALUES, helm_chart.PAGE, helm_chart.RULES):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert helm_chart.main(["--check"]) == 0
    helm_chart.VALUES.write_text(helm_chart.VALUES.read_text().replace("workers: 16", "workers: 17"))
    assert helm_chart.main(["--check"]) == 1
    assert capsys.readouterr().err == f"{helm_chart.VALUES} is stale: run `python -m finetune_operator.helm_chart`\n"
    assert helm_chart.main([]) == 0
    assert helm_chart.main(["--check"]) == 0


def test_the_versions_agree() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (about["version"], about["appVersion"]) == (version, version)
    assert Settings().trainer_image.endswith(f":{version}")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "serves FinetuneJobs in the whole cluster."),
        (ONE_NAMESPACE, "serves FinetuneJobs in the namespace team-a."),
        ({}, f"kubectl -n default rollout status deployment/{NAME}"),
        (ONE_NAMESPACE, "kubectl get ftj -n team-a"),
        ({}, "Kubeflow Training Operator is installed."),
    ],
)
def test_the_notes_tell_how_to_go_on(values: Json, sentence: str) -> None:
    assert sentence in notes(values)
