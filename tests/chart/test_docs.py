"""What the pages for administrators say is so."""

from __future__ import annotations

import re

import helm_python
import pytest
import yaml

from builders import Json
from chart.helm import CHART, render
from finetune_operator import metrics

DOCS = CHART.parents[1] / "docs"
INSTALL, OPERATIONS = ((DOCS / name).read_text() for name in ("install.md", "operations.md"))
OF_VALUES = [y for block in re.findall(r"```yaml values\n(.*?)```", INSTALL, re.DOTALL)
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


def test_the_page_lists_every_right_and_no_other() -> None:
    table = OPERATIONS.split("## Rights")[1].split("##")[0]
    rows = re.findall(r"^\| `(\S+)` \| ([a-z, ]+) \|", table, re.MULTILINE)
    assert {resource: set(verbs.split(", ")) for resource, verbs in rows} == rules(render())


@pytest.mark.parametrize("setter", SETTERS)
def test_a_value_that_the_page_sets_exists(setter: str) -> None:
    assert render(helm_python.parse_set_string(setter))


@pytest.mark.parametrize("values", OF_VALUES, ids=str)
def test_values_that_the_page_shows_exist(values: Json) -> None:
    assert render(values)


def test_the_page_shows_values() -> None:
    assert (len(OF_VALUES), len(SETTERS)) == (1, 4)
