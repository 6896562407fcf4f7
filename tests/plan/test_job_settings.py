"""One table reads the spec, once: every honoured key stands in it, and every value knows the key that gave it."""

from __future__ import annotations

import pytest

from builders import Json, resource
from finetune_api.resource.aliases import DATA_PARALLEL
from finetune_api.resource.key_table import Fate
from finetune_api.resource.keys import keys
from finetune_api.resource.v1alpha1 import Spec
from finetune_plan.job_settings import read, spellings

RULES_ONLY = {
    *DATA_PARALLEL, "output.ephemeral", "algorithm.method", "algorithm.type", "data.format",
    "hyperparameters.parallelism.fsdp_auto_wrap_policy", "training.validation.greater_is_better",
    "training.validation.metric_for_best_model",
}  # fmt: skip
"""Keys with one legal value, or that are only checked: a rule or the schema reads them, and nothing else has to."""
WHOLE = {"hyperparameters.parallelism", "pods.env", "pods.tolerations", "credentials.huggingFace"}
"""Keys that are read with all that is in them."""


def test_the_table_holds_every_honoured_key() -> None:
    every = {k.path.removeprefix("spec."): k for k in keys(Spec)}
    parents = {path.rpartition(".")[0].removesuffix("[]") for path in every}
    leaves = {p for p, k in every.items() if k.fate is Fate.HONOURED and p not in parents}
    inside = {
        p for p in leaves if any(p.startswith((f"{w}.", f"{w}[]")) for w in WHOLE - {"hyperparameters.parallelism"})
    }
    assert leaves - inside - RULES_ONLY == spellings() - WHOLE
    assert spellings() <= set(every)


@pytest.mark.parametrize(("changes", "value", "key"), [
    ({}, 1, ""),
    ({"hyperparameters.parallelism.tensor_parallel_size": 2}, 2, "hyperparameters.parallelism.tensor_parallel_size"),
    ({"data.topology.tensor_parallel": 4}, 4, "data.topology.tensor_parallel"),
    ({"data.topology.tensor_parallel": 2, "hyperparameters.parallelism.tensor_parallel_size": 2}, 2,
     "hyperparameters.parallelism.tensor_parallel_size"),
])  # fmt: skip
def test_a_setting_has_the_first_value_given_and_names_its_key(changes: Json, value: int, key: str) -> None:
    found = read(resource(changes)).layout.tensor
    assert (found.value, found.key) == (value, key)


def test_false_and_zero_are_values() -> None:
    found = read(resource({"data.shuffle": False, "lifecycle.maxRestarts": 0}))
    assert (found.data.shuffle.value, found.lifecycle.max_restarts.value) == (False, 0)


@pytest.mark.parametrize("spec", [None, "text", [], {"compute": "text"}, {"hyperparameters": {"parallelism": 3}}])
def test_a_spec_of_any_shape_can_be_read(spec: object) -> None:
    """A job that never passed admission is refused later, with its mistakes; reading it must not fail."""
    assert read({"metadata": {"name": "sample"}, "spec": spec}).layout.total.value is None
