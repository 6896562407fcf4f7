"""The admission policy that refuses unknown keys by name. Called by __main__ and by tests.

A structural schema drops keys that it does not know for every client that does not ask for strict
validation: a misspelt key would change the training silently. So the mirrored sections keep
unknown keys in the schema, and this policy refuses them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from finetune_api.resource.key_table import FREE_LENGTH, free_maps
from finetune_api.resource.keys import Section, children
from finetune_api.resource.names import GROUP, PLURAL, VERSION
from finetune_api.resource.v1alpha1 import Spec

Manifest = dict[str, Any]
NAME = f"known-keys.{PLURAL}.{GROUP}"


def sections(model: type[BaseModel] = Spec, path: str = "spec") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Path and known keys of every mirrored section, depth first."""
    yield path, tuple(children(model))
    for name, child in children(model).items():
        if child.model is not None and issubclass(child.model, Section):
            assert not child.is_list, f"{path}.{name}: the policy does not check inside lists"
            yield from sections(child.model, f"{path}.{name}")


def policy() -> Manifest:
    """The ValidatingAdmissionPolicy. A job that is already stored may still be labelled, finished and removed:
    only new jobs and changed specs are checked."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": NAME},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": [GROUP],
                        "apiVersions": [VERSION],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": [PLURAL],
                    }
                ]
            },
            "variables": [{"name": "unknown", "expression": " +\n".join(_unknown(*each) for each in sections())}],
            "validations": [
                {
                    "expression": f"variables.unknown.size() == 0 || {_UNCHANGED}",
                    "message": f"The job has unknown keys. {_REMEDY}",
                    "messageExpression": f"'unknown keys: ' + variables.unknown.join(', ') + '. {_REMEDY}'",
                    "reason": "Invalid",
                },
                *(_short(key) for key in free_maps()),
            ],
        },
    }


def binding() -> Manifest:
    """What puts the policy in force, in every namespace."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": NAME},
        "spec": {"policyName": NAME, "validationActions": ["Deny"]},
    }


_UNCHANGED = "(request.operation == 'UPDATE' && object.spec == oldObject.spec)"
_REMEDY = "Correct or remove them; `finetune validate` names the nearest known key."


def _short(key: str) -> Manifest:
    """A structural schema has no bound for a value of any type."""
    text = f"'%s'.format([dyn(object.spec).{key}])"
    unchanged = f"{_has('oldObject.spec', key)} && object.spec.{key} == oldObject.spec.{key}"
    return {
        "expression": f"!({_has('object.spec', key)}) || {text}.size() <= {FREE_LENGTH} || "
        f"(request.operation == 'UPDATE' && {unchanged})",
        "message": f"spec.{key} is too long: as text it may have at most {FREE_LENGTH} characters. Shorten it.",
        "reason": "Invalid",
    }


def _has(root: str, key: str) -> str:
    names = key.split(".")
    return " && ".join(f"has({root}.{'.'.join(names[: i + 1])})" for i in range(len(names)))


def _unknown(path: str, known: tuple[str, ...]) -> str:
    """CEL list of the paths of unknown keys. dyn(), because a schema's object is not a map to CEL."""
    names = path.split(".")
    there = " && ".join(f"has(object.{'.'.join(names[: i + 1])})" for i in range(len(names)))
    listed = ", ".join(f"'{name}'" for name in known)
    return f"({there} ? dyn(object.{path}).filter(k, !(k in [{listed}])).map(k, '{path}.' + k) : [])"
