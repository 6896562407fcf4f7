"""What kubectl's users see: every way in which they can bring a job refuses what nobody knows, and names the field.

One call of kubectl carries one job for every section, or for every enum: the tables come from finetune_api.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from builders import Json, resource
from finetune_api.codegen import policy
from finetune_api.codegen.schema import Schema, structural
from finetune_api.resource.keys import keys
from finetune_api.resource.v1alpha1 import Spec
from testbed.cluster import Cluster

WAYS = {
    "apply": ("apply",),
    "apply, field validation ignored": ("apply", "--validate=ignore"),
    "server-side apply": ("apply", "--server-side"),
    "server-side apply, field validation ignored": ("apply", "--server-side", "--validate=ignore"),
    "create, field validation ignored": ("create", "--validate=ignore"),
}


def sections(schema: Schema, path: str = "spec") -> Iterator[str]:
    """Paths of all mirrored sections: those with known keys in which the schema lets unknown ones pass."""
    if "properties" in schema and schema.get("x-kubernetes-preserve-unknown-fields"):
        yield path
    for name, each in schema.get("properties", {}).items():
        yield from sections(each, f"{path}.{name}")


def surprises() -> dict[str, Json]:
    """By the path of the unknown key: a job that is fine but for that key. One for every mirrored section."""
    keys = [f"{section}.surprise" for section in sections(structural(Spec))]
    return {key: resource({key.removeprefix("spec."): 1}, name=f"s-{i}") for i, key in enumerate(keys)}


def enums(schema: Schema, path: str = "spec") -> Iterator[str]:
    """Paths of all keys that know only some words; of a list: in its first item."""
    if "enum" in schema:
        yield path
    for name, each in schema.get("properties", {}).items():
        yield from enums(each, f"{path}.{name}")
    if "items" in schema:
        yield from enums(schema["items"], f"{path}[0]")


def with_word(path: str, word: str, name: str) -> Json:
    """A job whose section has nothing but a word at a path such as spec.pods.tolerations[0].effect."""
    inner: Any = word
    for step in reversed(re.findall(r"[^.\[\]]+", path.removeprefix("spec."))):
        inner = [inner] if step == "0" else {step: inner}
    job = resource(name=name)
    return job | {"spec": job["spec"] | inner}


def bring(
    cluster: Cluster, namespace: str, way: Sequence[str], jobs: Sequence[Json]
) -> subprocess.CompletedProcess[str]:
    text = "\n---\n".join(map(json.dumps, jobs))
    return cluster.kubectl(*way, "-n", namespace, "-f", "-", stdin=text)


def test_the_table_holds_every_section_that_keeps_unknown_keys() -> None:
    assert [key.removesuffix(".surprise") for key in surprises()] == [path for path, _ in policy.sections()]
    assert {"spec.surprise", "spec.data.topology.surprise", "spec.training.validation.surprise"} <= {*surprises()}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_unknown_key_of_any_section_is_refused(server: Cluster, namespace: str, way: Sequence[str]) -> None:
    done = bring(server, namespace, way, list(surprises().values()))
    assert done.returncode == 1
    assert [path for path in surprises() if f"unknown keys: {path}." not in done.stderr] == []
    assert server.kubectl("get", "ftj", "-n", namespace, "-o", "name").stdout == ""


@pytest.mark.parametrize("way", [way for way in WAYS.values() if way[0] == "apply"],
                         ids=[name for name in WAYS if "apply" in name])  # fmt: skip
def test_an_unknown_key_is_refused_in_a_job_that_is_there(
    server: Cluster, namespace: str, way: Sequence[str]
) -> None:
    fine = [resource(name=job["metadata"]["name"]) for job in surprises().values()]
    assert bring(server, namespace, way, fine).returncode == 0
    done = bring(server, namespace, way, list(surprises().values()))
    assert done.returncode == 1
    assert [path for path in surprises() if f"unknown keys: {path}." not in done.stderr] == []
    stored = server.kubectl("get", "ftj", "-n", namespace, "-o", "yaml").stdout
    assert "surprise: 1" not in stored


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_wrong_word_is_refused_by_the_server_at_its_field(
    server: Cluster, namespace: str, way: Sequence[str]
) -> None:
    paths = list(enums(structural(Spec)))
    assert {"spec.training.mode", "spec.pods.tolerations[0].effect"} <= {*paths}
    done = bring(server, namespace, way, [with_word(path, "surprise", f"e-{i}") for i, path in enumerate(paths)])
    assert done.returncode == 1
    instead = {key.path: key.instead for key in keys(Spec)}
    for path in paths:
        start, way_out = ("Invalid value", instead[path]) if instead.get(path) else ("Unsupported value", "")
        [line] = [line for line in done.stderr.splitlines() if f'{path}: {start}: "surprise": ' in line]
        assert line.endswith(way_out)


CONTRADICTIONS: dict[str, tuple[Json, str]] = {
    "uneven": (
        {"compute.gpu_count": 8, "compute.nodes": 3},
        "spec.compute.nodes: Invalid value: gpu_count is not a multiple of nodes.",
    ),
    "product": (
        {"compute.gpu_count": 8, "compute.nodes": 2, "compute.gpus_per_node": 8},
        "spec.compute.gpu_count: Invalid value: gpu_count is not nodes x gpus_per_node.",
    ),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_number_of_gpus_that_contradicts_the_nodes_is_refused_by_the_server(
    server: Cluster, namespace: str, way: Sequence[str]
) -> None:
    jobs = [resource(changes, name=name) for name, (changes, _) in CONTRADICTIONS.items()]
    done = bring(server, namespace, way, jobs)
    assert done.returncode == 1
    assert [said for _, said in CONTRADICTIONS.values() if said not in done.stderr] == []


def test_the_columns_tell_how_every_job_stands_and_why(server: Cluster, namespace: str) -> None:
    for name, status in STATUSES.items():
        server.api.create(resource(name=name) | {"metadata": {"name": name, "namespace": namespace}})
        server.api.patch(f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs/{name}/status",
                         {"status": status})  # fmt: skip
    table = server.kubectl("get", "ftj", "-n", namespace, "-o", "wide").stdout.splitlines()
    rows = [re.split(r"  +", row.strip()) for row in table]
    assert rows[0] == ["NAME", "PHASE", "MODEL", "METHOD", "GPUS", "STEP", "LOSS", "ETA", "AGE", "ACCEPTED", "PODS",
                       "REASON"]  # fmt: skip
    assert [row[:2] + row[-3:] for row in rows[1:]] == [
        ["failed", "Failed", "Accepted", "DataRefused", "DataRefused"],
        ["running", "Training", "ValidationSkipped", "Running", "NotFinished"],
    ]
    assert rows[2][2:8] == ["Qwen/Qwen3-4B", "lora", "8", "40", "1.25", "600"]


def conditions(**reasons: str) -> list[Json]:
    same = {"status": "False", "message": "", "lastTransitionTime": "2026-11-21T00:00:00Z"}
    return [{"type": kind, "reason": reason} | same for kind, reason in reasons.items()]


STATUSES: dict[str, Json] = {
    "failed": {
        "phase": "Failed",
        "conditions": conditions(Accepted="Accepted", PodsReady="DataRefused", Ready="DataRefused"),
    },
    "running": {
        "phase": "Training",
        "resolved": {"method": "lora"},
        "layout": {"worldSize": 8},
        "progress": {"step": 40, "loss": 1.25, "etaSeconds": 600},
        "conditions": conditions(Accepted="ValidationSkipped", PodsReady="Running", Ready="NotFinished"),
    },
}


def test_explain_has_a_sentence_for_every_key_of_the_hyperparameters(server: Cluster) -> None:
    said = server.kubectl("explain", "finetunejob.spec.hyperparameters").stdout
    for name, each in structural(Spec)["properties"]["hyperparameters"]["properties"].items():
        entry = re.search(rf"^  {name}\t<\S+>\n(?:  enum: .*\n)?((?:    .+\n)+)", said, re.MULTILINE)
        assert entry, name
        assert " ".join(entry[1].split()) == each["description"], name
