"""Whether the API server and finetune_api.validation.check say the same of a job. Called by test_server.py.

The server stops early: it names keys that strict decoding does not know and nothing else; then mistakes of
shape, with or without the rules; then unknown keys of the mirrored sections, by the policy. So the two are
compared within what the server got to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from finetune_api.codegen.policy import sections
from finetune_api.resource.keys import keys
from finetune_api.resource.v1alpha1 import Spec
from finetune_api.validation.problem import Problem
from finetune_api.validation.rules import all_rules
from testbed.api import ApiError

MIRRORED = {path for path, _ in sections()}
SENTENCES = {rule.message for rule in all_rules()}
INSTEAD = {key.instead for key in keys(Spec)} - {""}
UNCHECKED = "some validation rules were not checked"


def disagreement(problems: Iterable[Problem], refusal: ApiError | None) -> str:
    """What the two do not agree on; empty if nothing. We count the entries of a list once each of them fits."""
    problems = list(problems)
    if refusal is None:
        return f"only we refuse: {sorted(p.path for p in problems)}" if problems else ""
    if not problems:
        return f"only the server refuses: {refusal}"
    unknown = {p.path for p in problems if p.reason == "UnknownKey"}
    rules = {p.path for p in problems if _is_rule(p.message)}
    shape = {p.path for p in problems if not _is_rule(p.message)} - unknown
    if refusal.status == 400:
        return _strict(_named(refusal), unknown, shape)
    if "denied request" in refusal.message:
        return _differ("unknown", _listed(refusal), {p.path for p in problems})
    if any(UNCHECKED in cause["message"] for cause in refusal.causes):
        shape -= {
            p.path for p in problems if p.reason == "UnknownValue" and p.remedy in INSTEAD
        }  # choices that a rule checks
    counted = {path for path in _shape(refusal) if any(bad.startswith(f"{path}[") for bad in shape)} - shape
    return _differ("malformed", _shape(refusal) - counted, shape) or _rules(refusal, rules, complete=not shape)


def _strict(named: set[str], unknown: set[str], shape: set[str]) -> str:
    """Strict decoding leaves the mirrored sections to the policy, and looks into maps that should be texts."""
    within = {path for path in named if any(path.startswith((f"{bad}.", f"{bad}[")) for bad in shape)}
    return _differ("not decoded", named - within, {p for p in unknown if p.rpartition(".")[0] not in MIRRORED})


def _named(refusal: ApiError) -> set[str]:
    return set(re.findall(r'unknown field "([^"]*)"', refusal.message))


def _listed(refusal: ApiError) -> set[str]:
    found = re.search(r"unknown keys: (.*?)\. Correct", refusal.message)
    return set(found[1].split(", ")) if found else set()


def _is_rule(message: str) -> bool:
    return any(sentence in message for sentence in SENTENCES)


def _shape(refusal: ApiError) -> set[str]:
    return {c["field"] for c in refusal.causes if not _is_rule(c["message"])} - {"<nil>"}


def _rules(refusal: ApiError, ours: set[str], *, complete: bool) -> str:
    """We check fewer rules where a shape is wrong; the server checks all of them, or none."""
    if any(UNCHECKED in cause["message"] for cause in refusal.causes):
        return ""
    theirs = {c["field"] for c in refusal.causes if _is_rule(c["message"])}
    return _differ("rules", theirs if complete else theirs & ours, ours)


def _differ(what: str, theirs: set[str], ours: set[str]) -> str:
    return "" if theirs == ours else f"{what}: the server says {sorted(theirs)}, we say {sorted(ours)}"
