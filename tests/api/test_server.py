"""The real API server and our own judge say the same; what only the server can do is seen here too."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from api.cases import CASES, Case
from api.conftest import CRDS, Refusal, wait_for_policy
from api.mutations import BASES, mutant
from api.test_models import STATUS
from api.verdicts import disagreement
from builders import Json, put, resource
from finetune_api.codegen import policy
from finetune_api.codegen.schema import structural
from finetune_api.resource.key_table import FREE_LENGTH, free_maps
from finetune_api.resource.names import NAME_LENGTH
from finetune_api.resource.status import Phase, Status
from finetune_api.resource.v1alpha1 import Spec
from finetune_api.validation import check
from testbed.api import ApiError, path_of
from testbed.cluster import Cluster

MUTANTS = 1000
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunejobs.finetune.dev"
POLICY = f"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/{policy.NAME}"

BINDING = path_of(policy.binding())


def test_the_manifests_apply_without_a_warning(server: Cluster) -> None:
    for name in ("finetunejobs.yaml", "admission-policy.yaml"):
        done = server.kubectl("apply", "--server-side", "--dry-run=server", "-f", str(CRDS / name))
        assert (done.returncode, done.stderr) == (0, "")


def test_the_server_finds_nothing_to_say_against_the_manifests(server: Cluster) -> None:
    conditions = {each["type"]: each["status"] for each in server.api.get(CRD)["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}
    assert server.api.get(POLICY).get("status", {}).get("typeChecking", {}).get("expressionWarnings", []) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_the_server_refuses_what_the_rule_refuses_at_the_same_key(refusal: Refusal, case: Case) -> None:
    job = resource(case.wrong)
    error = refusal(job)
    assert error is not None
    assert [c["field"] for c in error.causes if case.message in c["message"]] == [f"spec.{case.path}"]
    assert case.path in error.message
    assert disagreement(check.problems(job), error) == ""
    assert refusal(resource(case.near)) is None


@pytest.mark.parametrize("path", [path for path, _ in policy.sections()])
@pytest.mark.parametrize("validation", ["Strict", "Ignore"])
def test_an_unknown_key_of_a_mirrored_section_is_refused(refusal: Refusal, path: str, validation: str) -> None:
    key = f"{path}.surprise".removeprefix("spec.")
    error = refusal(resource({key: 1}), fieldValidation=validation)
    assert error is not None
    assert (error.status, error.reason) == (422, "Invalid")
    assert f"unknown keys: spec.{key}." in error.message


def test_all_unknown_keys_are_named_at_once(refusal: Refusal) -> None:
    error = refusal(resource({"lora.x": 1, "compute.topology.y": None, "compute.topology.z": {}, "zzz": []}))
    assert error is not None
    assert "unknown keys: spec.zzz, spec.compute.topology.z, spec.lora.x." in error.message


def nested(levels: int) -> Json:
    found: Json = {}
    for _ in range(levels):
        found = {"a": found}
    return found


TEXTS: list[tuple[object, str]] = [
    (0.5, "0.500000"), (1.5e-6, "0.000002"), (-3, "-3"), (2**63, f"{2**63}.000000"), (True, "true"), ({}, "{}"),
    ("ß\U0001f600\ufffd", '"ß\U0001f600\ufffd"'), ("\U000e0001", r'"\U000e0001"'),
    ('\\"\a\b\f\n\r\t\v', r'"\\\"\a\b\f\n\r\t\v"'), ("\x00\x7f", r'"\x00\x7f"'),
    ("\x85\u200b", r'"\u0085\u200b"'),
]  # fmt: skip
"""Values, and what the admission policy measures."""


def long(length: int) -> Json:
    """A map of all these values whose text has that length."""
    values = [value for value, _ in TEXTS] * 9
    listed = ", ".join([text for _, text in TEXTS] * 9)
    return {"a": values, "b": "x" * (length - len(f'{{"a":[{listed}], "b":""}}'))}


ANY: Json = {"n": None, "b": True, "f": 1.5e-6, "i": -3, "l": [1, [None, "x"]], "t": 'a"b', "e": {}, "ü": "ß" * 9}
ANYTHING: dict[str, tuple[Json, bool]] = {
    "values of all types": (ANY, True),
    "as long as it may be": (long(FREE_LENGTH), True),
    "one character more": (long(FREE_LENGTH + 1), False),
    "one long text": ({"a": "x" * FREE_LENGTH}, False),
    "one long key": ({"x" * FREE_LENGTH: 1}, False),
    "many short values, nested": ({str(n): list(range(999)) for n in range(9)}, False),
    "deep values": (nested(99), True),
}


@pytest.mark.parametrize("key", [*free_maps()])
@pytest.mark.parametrize("case", ANYTHING)
def test_a_map_that_holds_anything_has_a_bound_as_a_whole(refusal: Refusal, case: str, key: str) -> None:
    value, fine = ANYTHING[case]
    job = resource({key: value})
    error = refusal(job)
    assert (error is None) is fine, error and error.message[:300]
    if error:
        assert f"spec.{key} is too long: as text it may have at most {FREE_LENGTH} characters." in error.message
    assert [p.path for p in check.problems(job)] == ([] if fine else [f"spec.{key}"])


def test_kubectl_names_a_misspelt_key_of_a_native_part(server: Cluster, namespace: str) -> None:
    job = resource({"pods.env": [{"name": "A", "value": "b", "valueFrom": {}}]})
    done = server.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(job))
    assert done.returncode == 1
    assert 'unknown field "spec.pods.env[0].valueFrom"' in done.stderr


def test_a_number_of_yaml_is_read_as_we_read_it(server: Cluster, namespace: str) -> None:
    """8e-6 is a number, and 8.0 is as whole as 8."""
    text = yaml.safe_dump(resource({"hyperparameters.learning_rate": "RATE", "compute.gpu_count": 8.0}))
    done = server.kubectl("apply", "-n", namespace, "-f", "-", stdin=text.replace("RATE", "8e-6"))
    assert (done.returncode, done.stderr) == (0, "")
    spec = server.api.get(_path(namespace))["spec"]
    assert (spec["hyperparameters"]["learning_rate"], spec["compute"]["gpu_count"]) == (8e-06, 8)


def test_a_key_without_a_value_is_dropped(server: Cluster, namespace: str) -> None:
    job = resource({"training.seed": 1, "tags": {"free": None}})
    job["spec"]["training"]["seed"] = None
    created = server.api.create(_in(namespace, job), dryRun="All")
    assert created["spec"]["training"] == {}
    assert created["spec"]["tags"] == {"free": None}
    assert check.problems(job) == []


@pytest.mark.parametrize("name", ["a" * (NAME_LENGTH + 1), "1a", "a.b"])
def test_a_name_that_makes_illegal_names_of_pods_is_refused(refusal: Refusal, name: str) -> None:
    error = refusal(resource(name=name))
    assert error is not None
    assert [(cause["field"], cause["reason"]) for cause in error.causes] == [("metadata.name", "FieldValueInvalid")]
    assert f"Use at most {NAME_LENGTH} lower-case letters" in error.message
    assert [p.path for p in check.problems(resource(name=name))] == ["metadata.name"]


@pytest.mark.parametrize("name", ["a" * NAME_LENGTH, "a-1"])
def test_a_name_that_makes_legal_names_of_pods_is_accepted(refusal: Refusal, name: str) -> None:
    assert refusal(resource(name=name)) is None


@pytest.mark.parametrize("spec", BASES, ids="+".join)
def test_what_is_stored_is_what_was_given(server: Cluster, namespace: str, spec: Json) -> None:
    """No default is written into a job, and no declared key is pruned."""
    assert server.api.create(_in(namespace, resource(spec=spec)), dryRun="All")["spec"] == spec


def test_a_status_is_stored_as_it_was_written(server: Cluster, namespace: str) -> None:
    server.api.create(_in(namespace, resource()))
    stored = _write_status(server, namespace, STATUS)
    assert Status.model_validate(stored["status"]) == STATUS
    assert stored["status"] == STATUS.model_dump(mode="json", exclude_none=True)


def test_kubectl_get_shows_where_the_job_is(server: Cluster, namespace: str) -> None:
    server.api.create(_in(namespace, resource()))
    _write_status(server, namespace, STATUS)
    head, row = server.kubectl("get", "ftj", "-n", namespace).stdout.splitlines()
    assert head.split() == ["NAME", "PHASE", "MODEL", "METHOD", "GPUS", "STEP", "LOSS", "ETA", "AGE"]
    assert row.split()[:3] == ["sample", "Training", "Qwen/Qwen3-4B"]
    assert row.split()[-4:-1] == ["5", "1.25", "60"]
    wide = server.kubectl("get", "finetune", "-n", namespace, "-o", "wide").stdout.splitlines()
    assert wide[1].split()[-1] == "Training"


def test_kubectl_explain_tells_what_a_key_means(server: Cluster) -> None:
    done = server.kubectl("explain", "ftj.spec.hyperparameters.learning_rate")
    assert "Peak learning rate." in done.stdout


# Once a run exists


RUNNING: Json = {"lora": {"r": 8}, "tags": {"a": "b"}, "lifecycle": {"maxRestarts": 1}}
FIXED: dict[str, Json] = {
    "a changed value": {"lora": {"r": 9}},
    "a removed section": {"lora": None},
    "an added section": {"policy": {"label": "x"}},
    "an added key": {"compute": {"nodes": 2}},
    "a removed key": {"compute": {"gpu_count": None}},
    "a changed free section": {"tags": {"a": "c"}},
    "a new key in a free section": {"tags": {"c": {"d": [1]}}},
    "an added native part": {"network": {"profile": "tcp"}},
    "another output": {"output": {"uri": "pvc://models/elsewhere"}},
}
FREE: dict[str, Json] = {
    "suspension": {"suspend": True},
    "cancellation": {"cancel": True},
    "a changed end": {"lifecycle": {"maxRestarts": 9}},
    "a removed end": {"lifecycle": None},
    "the same again": {"lora": {"r": 8}},
}


@pytest.fixture
def running(server: Cluster, namespace: str) -> str:
    """The path of a job whose first run exists."""
    server.api.create(_in(namespace, resource(RUNNING)))
    _write_status(server, namespace, Status(run=1))
    return _path(namespace)


@pytest.mark.parametrize("change", FIXED.values(), ids=FIXED)
def test_once_a_run_exists_the_training_is_fixed(server: Cluster, running: str, change: Json) -> None:
    with pytest.raises(ApiError) as error:
        server.api.patch(running, {"spec": change})
    [section] = change
    assert [cause["field"] for cause in error.value.causes] == [f"spec.{section}"]
    assert f"{section} is fixed once a run exists: from then on only suspend, cancel, lifecycle may change." in str(
        error.value
    )


@pytest.mark.parametrize("change", FREE.values(), ids=FREE)
def test_once_a_run_exists_three_keys_may_change(server: Cluster, running: str, change: Json) -> None:
    assert _holds(server.api.patch(running, {"spec": change})["spec"], change)


@pytest.mark.parametrize("change", [*FIXED.values(), *FREE.values()], ids=[*FIXED, *FREE])
def test_before_the_first_run_everything_may_change(server: Cluster, namespace: str, change: Json) -> None:
    server.api.create(_in(namespace, resource(RUNNING)))
    _write_status(server, namespace, Status(observedGeneration=1))
    assert _holds(server.api.patch(_path(namespace), {"spec": change})["spec"], change)


def _holds(stored: Json, change: Json) -> bool:
    """Whether a merge patch has had its effect: None is gone, everything else is there."""
    return all(
        key not in stored if value is None
        else _holds(stored.get(key, {}), value) if isinstance(value, dict)
        else stored.get(key) == value
        for key, value in change.items()
    )  # fmt: skip


def test_a_status_can_be_written_while_the_training_is_fixed(server: Cluster, namespace: str, running: str) -> None:
    assert _write_status(server, namespace, Status(run=2))["status"]["run"] == 2


def test_a_job_with_a_key_that_became_unknown_can_still_be_finished_and_removed(
    server: Cluster, namespace: str
) -> None:
    """Labels, status and the end must not hang on an old key."""
    _store_unchecked(server, namespace, {"lora.old": 1})
    server.api.patch(_path(namespace), {"metadata": {"labels": {"a": "b"}}})
    _write_status(server, namespace, Status(phase=Phase.SUCCEEDED))
    with pytest.raises(ApiError, match=re.escape("unknown keys: spec.lora.old.")):
        server.api.patch(_path(namespace), {"spec": {"lora": {"r": 9}}})
    server.api.patch(_path(namespace), {"spec": {"lora": {"old": None}}})
    server.api.delete(_path(namespace))


@pytest.mark.parametrize("key", [*free_maps()])
def test_a_job_with_a_map_that_became_too_long_can_still_be_suspended(
    server: Cluster, namespace: str, key: str
) -> None:
    _store_unchecked(server, namespace, {key: {"a": "x" * FREE_LENGTH}})
    longer: Json = {}
    put(longer, f"spec.{key}", {"b": 1})
    with pytest.raises(ApiError, match=f"spec.{key} is too long"):
        server.api.patch(_path(namespace), longer)
    _write_status(server, namespace, Status(run=1))
    server.api.patch(_path(namespace), {"spec": {"suspend": True}})


def _store_unchecked(server: Cluster, namespace: str, changes: Json) -> None:
    """A job that was stored before the policy was there."""
    server.api.delete(BINDING)
    try:
        wait_for_policy(server, in_force=False)
        server.api.create(_in(namespace, resource(changes)))
    finally:
        server.api.apply(policy.binding())
        wait_for_policy(server)


# The property


def test_a_thousand_mutants_are_judged_alike(refusal: Refusal) -> None:
    schema = structural(Spec)

    def differ(seed: int) -> tuple[str, bool]:
        job = resource(spec=mutant(seed, schema))
        problems = check.problems(job)
        said = disagreement(problems, refusal(job))
        return f"seed {seed}: {said}" if said else "", not problems

    with ThreadPoolExecutor(4) as pool:
        judged = list(pool.map(differ, range(MUTANTS)))
    assert [said for said, _ in judged if said] == []
    fine = sum(is_fine for _, is_fine in judged)
    assert MUTANTS * 0.2 < fine < MUTANTS * 0.6, "the mutations miss one half of the question"


def _in(namespace: str, job: Json) -> Json:
    return job | {"metadata": job["metadata"] | {"namespace": namespace}}


def _path(namespace: str) -> str:
    return f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs/sample"


def _write_status(server: Cluster, namespace: str, status: Status) -> Json:
    body = {"status": status.model_dump(mode="json", exclude_none=True)}
    return server.api.patch(f"{_path(namespace)}/status", body)
