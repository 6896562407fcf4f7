"""What `check.problems` reports about malformed and misspelt jobs: where, why, and the remedy."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from builders import Json, put, resource
from finetune_api.resource.key_table import Fate
from finetune_api.resource.keys import keys
from finetune_api.resource.names import NAME_LENGTH
from finetune_api.resource.v1alpha1 import Spec
from finetune_api.validation import check

# sentence -> (path of the value, the value, reason, message)
SHAPES: dict[str, tuple[str, Any, str, str]] = {
    "a number is not a string": (
        "hyperparameters.learning_rate", "8e-6", "BadValue", "'8e-6' is not valid: it must be a number."),
    "an integer has no half": (
        "compute.gpu_count", 2.5, "BadValue", "2.5 is not valid: it must be an integer."),
    "an integer is not a boolean": (
        "compute.gpu_count", True, "BadValue", "True is not valid: it must be an integer."),
    "a boolean is not a string": ("suspend", "yes", "BadValue", "'yes' is not valid: it must be true or false."),
    "a string is not a number": ("job.model", 7, "BadValue", "7 is not valid: it must be a string."),
    "a list is not a string": (
        "lora.target_modules", "all-linear", "BadValue", "'all-linear' is not valid: it must be a list."),
    "a section is not a string": ("data", "rows.jsonl", "BadValue", "'rows.jsonl' is not valid: it must be a map."),
    "a free section is not a list": ("tags", ["a"], "BadValue", "['a'] is not valid: it must be a map."),
    "a learning rate is more than zero": (
        "hyperparameters.learning_rate", 0, "BadValue", "0 is not valid: it must be more than 0."),
    "a learning rate is at most one": (
        "hyperparameters.learning_rate", 1.5, "BadValue", "1.5 is not valid: it may be at most 1."),
    "there is at least one epoch": (
        "hyperparameters.n_epochs", 0, "BadValue", "0 is not valid: it must be at least 1."),
    "dropout leaves something": ("lora.dropout", 1, "BadValue", "1 is not valid: it must be less than 1."),
    "a model has a name": ("job.model", "", "BadValue", "'' is not valid: it must have 1 or more characters."),
    "a name has an end": (
        "job.model", "a" * 257, "BadValue", f"'{'a' * 56}... is not valid: it may have at most 256 characters."),
    "adapters go somewhere": (
        "lora.target_modules", [], "BadValue", "[] is not valid: it must have 1 or more entries."),
    "a list has an end": (
        "job.modalities", ["a"] * 9, "BadValue",
        "['a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a'] is not valid: it may have at most 8 entries."),
    "a claim has a DNS name": (
        "storage.cacheClaim", "My_Claim", "BadValue",
        "'My_Claim' is not valid: it must match ^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$."),
    "a quantity ends where its line ends": (
        "pods.cpu", "1\n", "BadValue",
        "'1\\n' is not valid: it must match ^[0-9]+(\\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$."),
    "a choice is one of those listed": (
        "algorithm.variety", "full", "UnknownValue", "'full' is not one of 'fft', 'lora' or 'qlora'."),
    "a wrong entry is named by its index": (
        "lora.target_modules[1]", None, "BadValue", "None is not valid: it must be a string."),
    "a date is not JSON": (
        "tags.since", date(2026, 1, 2), "NotJson", "JSON has no value like datetime.date(2026, 1, 2)."),
    "infinity is not JSON": ("training.seed", float("inf"), "NotJson", "JSON has no value like inf."),
    "a number without end is not JSON": (
        "training.seed", float("nan"), "NotJson", "JSON has no value like nan."),
    "half a letter is not JSON": ("job.model", "a\ud800", "NotJson", "JSON has no value like 'a\\ud800'."),
}  # fmt: skip
# sentence -> (misspelt path, value, remedy)
MISSPELT: dict[str, tuple[str, Any, str]] = {
    "a letter too few": ("hyperparameters.learning_rat", 1e-4, "Did you mean spec.hyperparameters.learning_rate?"),
    "a dash": ("compute.gpu-type", "H100", "Did you mean spec.compute.gpu_type?"),
    "the other half's spelling": ("pods.node_selector", {"a": "b"}, "Did you mean spec.pods.nodeSelector?"),
    "the wrong section": ("training.learning_rate", 1e-4, "Did you mean spec.hyperparameters.learning_rate?"),
    "a section's name": ("hyperparamters", {"n_epochs": 1}, "Did you mean spec.hyperparameters?"),
    "deep in the parallelism": (
        "hyperparameters.parallelism.tensor_paralel_size", 2,
        "Did you mean spec.hyperparameters.parallelism.tensor_parallel_size?"),
    "a key of PEFT in the wrong place": (
        "training.use_dora", True, "Did you mean spec.training.lora.use_dora?"),
    "a key of Axolotl": ("training.optimizer", "adamw_bnb_8bit", "Did you mean spec.hyperparameters.optim?"),
    "a key of another system": (
        "training.lora.additional_target", ["lm_head"], "Did you mean spec.training.lora.modules_to_save?"),
    "a key of Axolotl for experts": (
        "training.lora.lora_target_parameters", ["experts.down_proj"],
        "Did you mean spec.training.lora.target_parameters?"),
    "a key of PEFT outside of its section": (
        "training.target_parameters", ["experts.down_proj"], "Did you mean spec.training.lora.target_parameters?"),
    "what another system has and this one has not": (
        "training.load_in_8bit", False,
        ("Remove it; for a base in eight bits set training.use_qlora to true and training.quantization.format to "
         "int8.")),
    "nothing like it": ("queue.zzz", 1, "Remove it. Known here: name, priorityClass."),
    "an empty name": ("queue.", 1, "Remove it. Known here: name, priorityClass."),
}  # fmt: skip


@pytest.mark.parametrize(("path", "value", "reason", "message"), SHAPES.values(), ids=SHAPES)
def test_a_wrong_shape_is_refused(path: str, value: Any, reason: str, message: str) -> None:
    given = ["q", value] if path.endswith("[1]") else value
    body = resource()
    put(body["spec"], path.partition("[")[0], given)
    [problem] = check.problems(body)
    assert (problem.path, problem.reason, problem.message) == (f"spec.{path}", reason, message)
    assert problem.remedy


@pytest.mark.parametrize(
    ("path", "value", "remedy"),
    [
        ("pods.cpu", 8, "Put quotes around it."),
        ("lora.target_modules", "q_proj, v_proj", "Write [q_proj, v_proj]."),
        ("lora.target_modules", "all-linear", "Write [all-linear]."),
        ("training.lora.layers_to_transform", 3, "Write [3]."),
        ("training.lora.target_modules", "[q_proj", "Correct it; `finetune explain training.lora.target_modules`"),
        ("training.lora.init_lora_weights", True, "Set default, gaussian, olora"),
    ],
)
def test_a_value_of_another_type_is_answered_with_what_was_meant(path: str, value: object, remedy: str) -> None:
    [problem] = check.problems(resource({path: value}))
    assert problem.path == f"spec.{path}"
    assert problem.remedy.startswith(remedy)


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PET_NNODES"])
def test_a_variable_that_the_launcher_sets_is_refused(name: str) -> None:
    [problem] = check.problems(resource({"pods.env": [{"name": name, "value": "1"}]}))
    assert (problem.path, problem.reason) == ("spec.pods.env", "ForbiddenVariable")
    assert check.problems(resource({"pods.env": [{"name": f"MY_{name}S", "value": "1"}]})) == []


@pytest.mark.parametrize(
    "name",
    ["devices.gke.io/container.pytorch", "networking.gke.io/interfaces", "k8s.v1.cni.cncf.io/networks",
     "v1.multus-cni.io/default-network", "io.kubernetes.cri-o.Devices", "io.kubernetes.cri-o.userns-mode"],
)  # fmt: skip
def test_an_annotation_that_gives_a_pod_things_of_the_node_is_left_to_network_profiles(name: str) -> None:
    [problem] = check.problems(resource({"pods.annotations": {name: "x", f"my-{name}": "x"}}))
    assert (problem.path, problem.reason) == ("spec.pods.annotations", "ReservedAnnotation")
    assert problem.remedy == "Remove it, and name a network profile that has it: network.profile."


def test_of_a_misspelt_choice_the_nearest_is_named() -> None:
    remedies = [check.problems(resource({"training.mode": mode}))[0].remedy for mode in ("lroa", "nothing")]
    assert remedies == ["Did you mean lora?", "Correct it; `finetune explain training.mode` describes the key."]


@pytest.mark.parametrize(("path", "value", "remedy"), MISSPELT.values(), ids=MISSPELT)
def test_a_misspelt_key_is_refused_and_the_nearest_is_named(path: str, value: Any, remedy: str) -> None:
    [problem] = check.problems(resource({path: value}))
    parent, _, name = f"spec.{path}".rpartition(".")
    assert problem.path == f"spec.{path}"
    assert problem.message == f"{name!r} is not a key of {parent}."
    assert (problem.reason, problem.remedy) == ("UnknownKey", remedy)


def test_an_unknown_key_in_a_list_is_named_by_its_index() -> None:
    [problem] = check.problems(resource({"pods.env": [{"name": "A", "value": "1", "valueFrom": {}}]}))
    assert (problem.path, problem.remedy) == ("spec.pods.env[0].valueFrom", "Did you mean spec.pods.env[0].value?")


@pytest.mark.parametrize("key", [k for k in keys(Spec) if k.fate is Fate.REFUSED], ids=lambda k: k.path)
def test_a_refused_key_is_refused_with_its_reason(key: Any) -> None:
    value = 1 if "gpus" in key.path else "x"
    [problem] = check.problems(resource({key.path.removeprefix("spec."): value}))
    assert (problem.path, problem.reason) == (key.path, "RefusedKey")
    assert problem.message == f"This key is refused: {key.because}."


def test_all_mistakes_are_named_at_once() -> None:
    """Also rules, as long as they read no malformed key."""
    found = check.problems(resource({"job.model": None, "compute.gpu_count": "8", "compute.nodes": 3, "lora.rr": 1}))
    assert [(p.path, p.reason) for p in found] == [
        ("spec.compute.gpu_count", "BadValue"), ("spec.job.model", "MissingModel"), ("spec.lora.rr", "UnknownKey"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "path", "reason"),
    [
        ({"kind": "PyTorchJob"}, "kind", "WrongKind"),
        ({"apiVersion": "finetune.dev/v1"}, "apiVersion", "WrongKind"),
        ({"metadata": None}, "metadata", "Missing"),
        ({"metadata": {}}, "metadata.name", "Missing"),
        ({"metadata": {"name": "a" * (NAME_LENGTH + 1)}}, "metadata.name", "BadName"),
        ({"metadata": {"name": "1a"}}, "metadata.name", "BadName"),
        ({"metadata": {"name": "a.b"}}, "metadata.name", "BadName"),
        ({"metadata": {"name": "a", "label": {}}}, "metadata.label", "UnknownKey"),
        ({"metadata": {"name": "a", "labels": {"a": 1}}}, "metadata.labels.a", "BadValue"),
        ({"spec": None}, "spec", "Missing"),
        ({"spec": []}, "spec", "BadValue"),
        ({"training": {}}, "training", "UnknownKey"),
        ({1: 2}, "1", "NotJson"),
    ],
    ids=str,
)
def test_a_document_that_is_no_job_is_refused(change: Json, path: str, reason: str) -> None:
    [problem] = check.problems(resource() | change)
    assert (problem.path, problem.reason) == (path, reason)
    assert problem.message
    assert problem.remedy


def test_a_section_outside_spec_is_told_its_place() -> None:
    [problem] = check.problems({**resource(), "training": {}})
    assert (problem.message, problem.remedy) == (
        "'training' is not a key of a FinetuneJob.", "Did you mean spec.training?",
    )  # fmt: skip


def test_the_longest_name_is_fine() -> None:
    assert check.problems(resource(name="a" * NAME_LENGTH)) == []


@pytest.mark.parametrize("path", ["data", "training.seed", "tags.owner", "pods.labels"])
def test_a_key_without_a_value_is_as_good_as_absent(path: str) -> None:
    """As in the API server, which drops it."""
    body = resource()
    put(body["spec"], f"{path}.x", 1)  # makes the parents
    parent: Any = body["spec"]
    *parents, last = path.split(".")
    for each in parents:
        parent = parent[each]
    parent[last] = None
    assert check.problems(body) == []


def test_a_whole_number_may_be_written_with_a_point() -> None:
    """YAML's 8.0 reaches the API server as 8."""
    body = resource({"compute.gpu_count": 8.0, "lora.alpha": 32})
    assert check.problems(body) == []


def test_a_status_is_none_of_our_business() -> None:
    """A manifest read back from a cluster may carry one, perhaps of a newer operator."""
    assert check.problems({**resource(), "status": {"phase": "Unheard-of"}}) == []
