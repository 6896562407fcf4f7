"""YAML as Kubernetes reads it. Expected values are those of sigs.k8s.io/yaml 1.6.0, run on the same texts."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_cli import kubernetes_yaml
from finetune_cli.kubernetes_yaml import InvalidYaml

SCALARS: dict[str, Any] = {
    "8e-6": 8e-6, "8E-6": 8e-6, "8.0e-6": 8e-6, "8e6": 8e6, "1e3": 1e3, "-1e-3": -1e-3, "2e2": 200.0,
    ".5": 0.5, "-.5": -0.5, "+.5": 0.5, "5.": 5.0, "0.1": 0.1, "1_0.5": 10.5, "0.1_5": 0.15, ".5_0": 0.5,
    "1_000": 1000, "1__0": 10, "1_": 1, "_1": "_1", "+5": 5, "-0": 0, "00": 0, "0x1F": 31, "0xff_ff": 65535,
    "0o17": 15, "017": 15, "0b101": 5, "-0b11": -3, "0_7": 7, "08": 8, "089": 89, "0x": "0x", "0o": "0o",
    "18446744073709551615": 18446744073709551615,
    "1:30": "1:30", "2026-01-01": "2026-01-01", "2026-01-01T00:00:00Z": "2026-01-01T00:00:00Z",
    "1.2.3": "1.2.3", "1e": "1e", "e5": "e5", "+": "+", ".": ".", "=": "=",
    "yes": True, "on": True, "y": True, "Y": True, "True": True, "TRUE": True, "tRUE": "tRUE",
    "no": False, "off": False, "n": False, "False": False,
    "~": None, "null": None, "Null": None, "": None,
    '"8e-6"': "8e-6", "'yes'": "yes", "!!str 12": "12", '!!int "12"': 12, "!!float 12": 12.0,
}  # fmt: skip


@pytest.mark.parametrize("text", SCALARS)
def test_a_scalar_is_what_it_is_for_kubernetes(text: str) -> None:
    [document] = kubernetes_yaml.documents(f"v: {text}\n")
    read = document.value["v"]
    assert read == SCALARS[text]
    assert isinstance(read, bool) == isinstance(SCALARS[text], bool)
    assert isinstance(read, str) == isinstance(SCALARS[text], str)


@pytest.mark.parametrize("text", SCALARS)
def test_what_is_written_is_read_back(text: str) -> None:
    data = {"v": SCALARS[text], "text": text}
    assert kubernetes_yaml.value(kubernetes_yaml.dump(data)) == data


MALFORMED = {
    "a key that stands twice": ("a: 1\nb: 2\na: 3\n", "duplicate key 'a'", 3, 1),
    "a key twice further in": ("s:\n  t: {a: 1, a: 2}\n", "duplicate key 'a'", 2, 13),
    "a number as key": ("s:\n  1: x\n", "the key '1' is not a string; put it in quotes", 2, 3),
    "a boolean as key": ("on: x\n", "the key 'on' is not a string; put it in quotes", 1, 1),
    "a tag": ("a: !!binary aGk=\n", "the tag tag:yaml.org,2002:binary is not supported", 1, 4),
    "a tag of its own": ("a: !env HOME\n", "the tag !env is not supported", 1, 4),
    "a tag that lies": ("a: !!int many\n", "'many' is not an integer", 1, 4),
    "a bracket left open": ("a: [1, 2\nb: 3\n", "did not find expected ',' or ']'", 2, 2),
    "a tab as indentation": ("a:\n\tb: 1\n", "found character that cannot start any token", 2, 1),
    "an anchor inside itself": ("a: &a [*a]\n", "the anchor a contains itself", 1, 8),
    "an anchor inside itself, at the top": ("&a [*a]\n", "the anchor a contains itself", 1, 5),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_refused_is_refused_with_its_place(case: str) -> None:
    text, message, line, column = MALFORMED[case]
    with pytest.raises(InvalidYaml) as caught:
        list(kubernetes_yaml.documents(text))
    assert message in str(caught.value)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_a_merge_key_fills_in_what_the_map_does_not_say_itself() -> None:
    text = "base: &base {a: 1, b: 2}\nuse: {<<: *base, b: 3}\n"
    assert kubernetes_yaml.value(text)["use"] == {"a": 1, "b": 3}


def test_places_are_those_of_the_key_or_of_the_nearest_one_above() -> None:
    [document] = kubernetes_yaml.documents("spec:\n  pods:\n    env:\n      - name: A\n        value: b\n")
    assert document.location("spec.pods.env[0].value") == (5, 9)
    assert document.location("spec.pods.env[0].other") == (4, 9)
    assert document.location("spec.job.model") == (1, 1)
    assert document.location("nothing") == (1, 1)
