"""Paths of objects and collections, and the pages of a list."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_kube.pages import first_page, next_page
from finetune_kube.paths import path

PATHS = {
    "/api/v1/namespaces/team/pods/a": ("v1", "pods", "team", "a"),
    "/api/v1/namespaces/team/pods": ("v1", "pods", "team"),
    "/api/v1/pods": ("v1", "pods"),
    "/apis/kubeflow.org/v1/namespaces/team/pytorchjobs/a": ("kubeflow.org/v1", "pytorchjobs", "team", "a"),
    "/apis/kubeflow.org/v1/pytorchjobs": ("kubeflow.org/v1", "pytorchjobs"),
}


@pytest.mark.parametrize("expected", PATHS)
def test_a_path_has_group_namespace_and_name_where_they_are_given(expected: str) -> None:
    assert path(*PATHS[expected]) == expected


def test_pages_follow_each_other_by_their_token_and_keep_the_query() -> None:
    query: dict[str, str] | None = first_page({"labelSelector": "a=b"}, 2)
    answers: list[dict[str, Any]] = [
        {"items": [1, 2], "metadata": {"continue": "t1"}},
        {"items": [3, 4], "metadata": {"continue": "t2"}},
        {"items": [5], "metadata": {"continue": ""}},
    ]
    sent, items = [], []
    for answer in answers:
        assert query is not None
        sent.append(query)
        items += answer["items"]
        query = next_page(query, answer)
    assert query is None
    assert items == [1, 2, 3, 4, 5]
    assert [each.get("continue") for each in sent] == [None, "t1", "t2"]
    assert all(each["labelSelector"] == "a=b" and each["limit"] == "2" for each in sent)


def test_a_list_without_a_token_has_one_page() -> None:
    assert next_page(first_page({}, 2), {"items": [], "metadata": {}}) is None
