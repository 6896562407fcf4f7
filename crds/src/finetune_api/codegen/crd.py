"""The CustomResourceDefinition, generated from the models and the rules. Called by __main__ and by tests."""

from __future__ import annotations

import re
from typing import Any

from finetune_api.resource.keys import keys
from finetune_api.resource.names import (
    API_VERSION,
    CATEGORY,
    DESCRIPTION,
    GROUP,
    KIND,
    NAME_LENGTH,
    NAME_PATTERN,
    PLURAL,
    SHORT_NAME,
    VERSION,
)
from finetune_api.resource.status import Status
from finetune_api.resource.v1alpha1 import Spec
from finetune_api.validation.rules import Rule, all_rules

from .schema import Schema, structural

Manifest = dict[str, Any]

CHOICE_LENGTH = 128
"""Longest value of a choice that a rule checks."""
MAY_CHANGE = ("suspend", "cancel", "lifecycle")
"""What may change once a run exists. Everything else made the run what it is."""


def crd() -> Manifest:
    """The manifest of the CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": [SHORT_NAME],
                "categories": [CATEGORY],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": list(COLUMNS),
                    "schema": {"openAPIV3Schema": root()},
                }
            ],
        },
    }


def root() -> Schema:
    """The schema of the whole resource."""
    spec, status = structural(Spec), structural(Status)
    for key in keys(Spec, ""):
        if key.instead:
            _enum_as_rule(_node(spec, key.path.lstrip(".")), key.instead)
    several = []
    for rule in all_rules():
        if rule.must.of_key:
            # At its key, a rule costs nothing while the key is absent: every write of the status evaluates them all.
            validations = _node(spec, rule.path).setdefault("x-kubernetes-validations", [])
            validations.append({"rule": rule.must.of_key, **_texts(rule)})
        else:
            several.append(_until_the_first_run(rule))
    return {
        "type": "object",
        "description": DESCRIPTION,
        "properties": {
            "apiVersion": {"type": "string", "description": f"{API_VERSION}."},
            "kind": {"type": "string", "description": f"{KIND}."},
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": spec,
            "status": status,
        },
        "required": ["spec"],
        "x-kubernetes-validations": [
            _NAME,
            *several,
            *(_fixed(name) for name in spec["properties"] if name not in MAY_CHANGE),
        ],
    }


def _enum_as_rule(node: Schema, instead: str) -> None:
    """Replace `enum` by a rule: for an enum the API server lists the supported values, but gives no remedy."""
    *most, last = choices = node.pop("enum")
    alternatives = f"{', '.join(most)} or {last}" if most else last
    node["maxLength"] = CHOICE_LENGTH
    node["x-kubernetes-validations"] = [
        {
            "rule": f"self in {choices}",
            "message": f"The value must be {alternatives}. {instead}",
            "reason": "FieldValueInvalid",
        }
    ]


def _node(schema: Schema, path: str) -> Schema:
    for name in path.split("."):
        schema = schema["properties"][name]
    return schema


def _until_the_first_run(rule: Rule) -> Schema:
    """A rule about several keys, at the root. Once a run exists these keys are fixed, and what a later version asks
    of them must not keep an accepted job from being suspended, resumed or cancelled."""
    must = re.sub(r"\bself\.", "self.spec.", rule.must.cel)
    return {
        "rule": f"(has(self.status) && has(self.status.run)) || ({must})",
        **_texts(rule),
        "fieldPath": f".spec.{rule.path}",
    }


def _texts(rule: Rule) -> Schema:
    return {"message": f"{rule.message} {rule.remedy}", "reason": rule.must.mistake}


def _fixed(section: str) -> Schema:
    """A whole section compared, so that adding and removing it counts as a change."""
    old, new = f"oldSelf.spec.{section}", f"self.spec.{section}"
    same = f"has({new}) == has({old}) && (!has({new}) || {new} == {old})"
    return {
        "rule": f"!has(oldSelf.status) || !has(oldSelf.status.run) || ({same})",
        "message": f"{section} is fixed once a run exists: from then on only {', '.join(MAY_CHANGE)} may change. "
        "Create another job for another training.",
        "reason": "FieldValueForbidden",
        "fieldPath": f".spec.{section}",
    }


_NAME = {
    "rule": f"self.metadata.name.size() <= {NAME_LENGTH} && self.metadata.name.matches('{NAME_PATTERN}')",
    "message": f"The name is not legal. Use at most {NAME_LENGTH} lower-case letters, digits and dashes, "
    "and a letter first: names of pods are made from it.",
    "reason": "FieldValueInvalid",
    "fieldPath": ".metadata.name",
}


def _column(name: str, kind: str, path: str, description: str, priority: int = 0) -> Schema:
    wide = {"priority": priority} if priority else {}
    return {"name": name, "type": kind, "jsonPath": path, "description": description, **wide}


COLUMNS = (
    _column("Phase", "string", ".status.phase", "One-word summary."),
    _column("Model", "string", ".spec.job.model", "Base model."),
    _column("Method", "string", ".status.resolved.method", "fft, lora or qlora."),
    _column("GPUs", "integer", ".status.layout.worldSize", "Total number of ranks."),
    _column("Step", "integer", ".status.progress.step", "Optimizer steps done."),
    _column("Loss", "number", ".status.progress.loss", "Mean loss of the last step."),
    _column("ETA", "integer", ".status.progress.etaSeconds", "Seconds to the end at this pace."),
    _column("Age", "date", ".metadata.creationTimestamp", "Time since the job was created."),
    _column(
        "Accepted",
        "string",
        ".status.conditions[?(@.type=='Accepted')].reason",
        "Whether the job is accepted, or why not.",
        1,
    ),
    _column("Pods", "string", ".status.conditions[?(@.type=='PodsReady')].reason", "How its pods are.", 1),
    _column("Reason", "string", ".status.conditions[?(@.type=='Ready')].reason", "Why it is ready or not.", 1),
)
