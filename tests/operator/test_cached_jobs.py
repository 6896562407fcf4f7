"""What the operator keeps of a job."""

from __future__ import annotations

import json

import pytest

from builders import Json, resource
from finetune_api.validation import check
from finetune_operator import transform
from finetune_plan import job_settings

LARGE = "x" * 100_000
FREE: dict[str, Json] = {
    "one large value": {"tags": {"a": LARGE}},
    "many values and large keys": {"tags": {f"{i}{LARGE}": i for i in range(64)}, "metadata": {LARGE: [LARGE]}},
    "none": {"tags": {}, "metadata": {}},
    "absent": {},
    "too many values": {"metadata": {f"key {i}": LARGE for i in range(65)}},
}


def stored(spec: Json) -> Json:
    """A job as the API server has it."""
    body = resource(spec)
    body["metadata"] |= {"namespace": "team", "uid": "1", "generation": 1, "resourceVersion": "1"}
    return body


@pytest.mark.parametrize("case", FREE)
def test_free_maps_are_kept_small_and_answered_as_they_are(case: str) -> None:
    raw = stored(FREE[case])
    text = transform.job(raw).text
    assert len(text) < 4 * len(transform.job(stored({})).text)
    kept = json.loads(text)
    assert job_settings.read(kept) == job_settings.read(raw)
    refused = [each.path for each in check.problems(raw) if "as text" not in each.message]
    assert [each.path for each in check.problems(kept)] == refused, "their length is for the admission policy"


def test_the_rest_of_a_spec_is_kept_and_the_object_is_not_changed() -> None:
    raw = stored({"tags": {"a": "b"}})
    assert json.loads(transform.job(raw).text)["spec"] | {"tags": None} == raw["spec"] | {"tags": None}
    assert raw["spec"]["tags"] == {"a": "b"}
