"""The generated CRD: structural, described and bounded everywhere, and like its conventions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from finetune_api.codegen import crd, policy
from finetune_api.codegen.schema import SchemaError, structural
from finetune_api.resource.key_table import free_maps
from finetune_api.resource.keys import Native, Section, key, keys
from finetune_api.resource.names import NAME_LENGTH, NAME_PATTERN
from finetune_api.resource.v1alpha1 import Spec
from finetune_api.validation.rules import all_rules

ROOT = crd.root()
SPEC = ROOT["properties"]["spec"]


def nodes(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a schema below and including `node`."""
    yield path, node
    for name, inner in node.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]")
    if "additionalProperties" in node:
        yield from nodes(node["additionalProperties"], f"{path}{{}}")


NODES = [*nodes(SPEC, "spec"), *nodes(ROOT["properties"]["status"], "status")]
BOUND = {"string": "maxLength", "array": "maxItems", "integer": "maximum"}


def test_every_text_list_map_and_whole_number_has_a_bound() -> None:
    missing = []
    for path, node in NODES:
        kind = node.get("type")
        bound = BOUND.get(kind) if kind else "enum"
        if kind == "object" and "properties" not in node:
            bound = "maxProperties"
        if bound and bound not in node and "enum" not in node:
            missing.append(f"{path}: {bound}")
    assert missing == []
    assert len(NODES) > 200


def test_every_key_has_a_description() -> None:
    assert [path for path, node in NODES if not path.endswith(("[]", "{}")) and not node.get("description")] == []


def test_nothing_has_a_default() -> None:
    """A later default would change what a queued job means."""
    assert [path for path, node in NODES if "default" in node] == []


def test_every_key_of_the_models_is_in_the_schema() -> None:
    paths = {path for path, _ in NODES}
    assert [k.path for k in keys(Spec) if k.path not in paths] == []


def test_mirrored_sections_keep_unknown_keys_and_native_parts_drop_them() -> None:
    keeping = {p for p, node in NODES if node.get("x-kubernetes-preserve-unknown-fields") and "enum" not in node}
    assert keeping == {path for path, _ in policy.sections()} | {f"spec.{key}" for key in free_maps()}
    assert "spec.hyperparameters.parallelism.topology" in keeping
    assert "spec.pods" not in keeping


def test_every_rule_is_said_with_a_message_that_the_api_server_takes() -> None:
    said = {path: node.get("x-kubernetes-validations", []) for path, node in NODES}
    choices = sum(key.instead != "" for key in keys(Spec))
    several = [each for each in ROOT["x-kubernetes-validations"] if "has(self.status.run)) ||" in each["rule"]]
    assert sum(map(len, said.values())) + len(several) == len(all_rules()) + choices
    for path, rules in said.items():
        assert len({each["rule"] for each in rules}) == len(rules), f"{path}: server-side apply keys the list by rule"
    for each in [*chain(*said.values()), *ROOT["x-kubernetes-validations"]]:
        assert 0 < len(each["message"]) <= 2048
        assert "\n" not in each["message"]
        assert each["reason"] in {"FieldValueRequired", "FieldValueInvalid", "FieldValueForbidden"}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("job.model", "FieldValueRequired"),
        ("compute.topology.gpus_for_vllm", "FieldValueForbidden"),
        ("training.use_qlora", "FieldValueInvalid"),
    ],
)
def test_a_rule_tells_machines_what_kind_of_mistake_it_is(path: str, reason: str) -> None:
    at_root = [each for each in ROOT["x-kubernetes-validations"] if each["fieldPath"] == f".spec.{path}"]
    at_key = dict(NODES)[f"spec.{path}"].get("x-kubernetes-validations", [])
    assert reason in [each["reason"] for each in [*at_root, *at_key]]


def test_only_three_keys_may_change_once_a_run_exists() -> None:
    fixed = {each["fieldPath"] for each in ROOT["x-kubernetes-validations"] if "oldSelf" in each["rule"]}
    free = {f".spec.{name}" for name in SPEC["properties"]} - fixed
    assert free == {".spec.suspend", ".spec.cancel", ".spec.lifecycle"}


def test_the_names_are_those_that_people_type() -> None:
    names = crd.crd()["spec"]["names"]
    assert (names["shortNames"], names["categories"]) == (["ftj"], ["finetune"])
    assert [column["name"] for column in crd.COLUMNS if not column.get("priority")] == [
        "Phase", "Model", "Method", "GPUs", "Step", "Loss", "ETA", "Age",
    ]  # fmt: skip


def test_every_column_reads_a_key_that_exists() -> None:
    paths = {f".{path}" for path, _ in NODES} | {".metadata.creationTimestamp", ".status.conditions"}
    assert [c["jsonPath"] for c in crd.COLUMNS if c["jsonPath"].partition("[")[0] not in paths] == []


def test_the_longest_generated_name_is_legal() -> None:
    """<name>-<run>-worker-<index> names a pod and its service: a DNS label."""
    nodes = dict(NODES)["spec.compute.nodes"]["maximum"]
    longest = f"{'a' * NAME_LENGTH}-99999-worker-{nodes - 2}"
    assert len(longest) <= 63
    assert re.fullmatch(NAME_PATTERN.strip("^$"), longest)


class Unbounded(Section):
    name: str | None = key("A name.")


class Endless(Section):
    names: tuple[Annotated[str, Field(max_length=3)], ...] | None = key("Names.")


class Wide(Section):
    names: dict[str, bool] | None = key("Names.")


class Silent(Native):
    name: bool | None = Field(default=None, json_schema_extra={"fate": "honoured", "because": ""})


class Undecided(Section):
    name: bool | Annotated[int, Field(ge=0, le=1)] | None = key("A number, or not.")


class Bottomless(Section):
    number: Annotated[int, Field(le=8)] | None = key("A number.")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Unbounded, "Unbounded.name: no maxLength"),
        (Endless, "Endless.names: no maxItems"),
        (Wide, "Wide.names: no maxProperties"),
        (Silent, "Silent.name: no description"),
        (Undecided, "Undecided.name: a structural schema has no unions"),
        (Bottomless, "Bottomless.number: no minimum"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_key_without_bounds_or_words_stops_the_generation(model: type[BaseModel], words: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(words)):
        structural(model)
