"""What the pages for administrators say is so."""

from __future__ import annotations

import re

import helm_python
import pytest
import yaml

from builders import Json
from chart.helm import CHART, environment, render
from finetune_operator import metrics
from finetune_operator.settings import Settings

DOCS = CHART.parents[1] / "docs"
INSTALL, OPERATIONS, NETWORKS = ((DOCS / f"{name}.md").read_text() for name in ("install", "operations", "networks"))
OF_VALUES = [y for block in re.findall(r"```yaml values\n(.*?)```", INSTALL + NETWORKS, re.DOTALL)
             if "kind" not in (y := yaml.safe_load(block))]  # fmt: skip
SETTERS = sorted(set(re.findall(r"--set (\S+=\w+)", INSTALL)))


def rules(manifests: list[Json]) -> dict[str, set[str]]:
    """Resource -> verbs, of all of the operator's roles."""
    found: dict[str, set[str]] = {}
    for role in manifests:
        if "aggregate" not in str(role["metadata"].get("labels")):
            for rule in role.get("rules", []):
                for resource in rule["resources"]:
                    found.setdefault(resource, set()).update(rule["verbs"])
    return found


def test_the_page_lists_every_metric_and_no_other() -> None:
    listed = re.findall(r"^\| `(finetune_operator_\w+)", OPERATIONS, re.MULTILINE)
    known = [f"{m.name}{'_total' if m.type == 'counter' else ''}" for m in metrics.REGISTRY.collect()]
    assert sorted(listed) == sorted(known)


def test_the_page_names_the_rights_that_settings_add() -> None:
    more = rules(render({"settings": {"deadNodeSeconds": 1, "readNodes": True}}))
    added = {resource: verbs - rules(render()).get(resource, set()) for resource, verbs in more.items()}
    assert {r: v for r, v in added.items() if v} == {"pods": {"delete"}, "nodes": {"list"}}
    assert "adds delete of `pods`" in OPERATIONS
    assert "role that lists `nodes`" in OPERATIONS


def test_the_page_lists_every_right_and_no_other() -> None:
    table = OPERATIONS.split("## Rights")[1].split("##")[0]
    rows = re.findall(r"^\| `(\S+)` \| ([a-z, ]+) \|", table, re.MULTILINE)
    assert {resource: set(verbs.split(", ")) for resource, verbs in rows} == rules(render())


@pytest.mark.parametrize("setter", SETTERS)
def test_a_value_that_the_page_sets_exists(setter: str) -> None:
    assert render(helm_python.parse_set_string(setter))


@pytest.mark.parametrize("values", OF_VALUES, ids=str)
def test_values_that_the_pages_show_exist_and_the_operator_takes_them(
    values: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(render(values)).items():
        monkeypatch.setenv(name, value)
    assert Settings().plan()


def test_the_pages_show_values() -> None:
    assert (len(OF_VALUES), len(SETTERS)) == (3, 4)
