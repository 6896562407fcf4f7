"""The pages of docs/reference that follow from models, rules, reasons and exit codes. Called by __main__."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from finetune_api.resource import conditions as c
from finetune_api.resource.key_table import Fate
from finetune_api.resource.reasons import REASONS
from finetune_api.runtime import exits
from finetune_api.validation import uris
from finetune_api.validation.rules import all_rules
from finetune_api.validation.uris import Scheme

from .reference import KeyEntry, entries

GENERATED = (
    "<!-- Generated from crds/src/finetune_api by `python -m finetune_api generate`; `make verify` compares. -->\n"
)

_FATES = """Every key of a job has one of three fates. **Honoured**: something reads it. **Informational**: it is
accepted, named in `status.informational` and by `finetune validate`, and changes nothing. **Refused**: it is
known, and the job is refused with the reason. A key that is not in these tables is refused by name. Where a
rule is named, the API server and `finetune validate` both check it; see [reasons](reasons.md).
"""
_REASONS = """Why a job is refused. The API server and `finetune validate` check the same rules. `finetune validate`
and the condition `Accepted` carry the reason, the API server the message.
"""
_SHAPE = {
    "BadName": "`metadata.name` is not a legal name; names of pods are made from it.",
    "BadValue": "A value has the wrong type or lies outside its bounds.",
    "Missing": "A required key is missing.",
    "NotJson": "A value is one that JSON does not have, such as an unquoted date.",
    "UnknownKey": "No such key exists. The remedy names the nearest one.",
    "UnknownValue": "The value is not one of the supported choices.",
    "WrongKind": "The document is not a FinetuneJob of this version.",
}
"""Reasons that check.py reports in addition to those of the rules."""
_CONDITIONS = {
    c.ACCEPTED: "The job is valid, and this version and this cluster can run it. Where it is False, the reason is "
    "that of the first problem: see [reasons for which a job is refused](reasons.md).",
    c.DATA_READY: "The rows were read and can be used for training.",
    c.PODS_READY: "Every pod of the run is running. After the end of a run the reason is that of the end. Where the "
    "next run of an accepted job may not be created any more, it is that of the rule or setting that forbids it.",
    c.TRAINING: "Optimizer steps are running. After the end of a run the reason is that of the end.",
    c.SUSPENDED: "The job was stopped and can be resumed. In the status file of `finetune run` the reason is "
    "`Stopped`.",
    c.COMPLETE: "The job succeeded. The reason is `Succeeded`, or the one below.",
    c.FAILURE_TARGET: "The job is going to be Failed or Cancelled, and nothing changes that any more: the phase is "
    "`Stopping` until none of its pods is left that has not ended. Reasons are those of Failed.",
    c.FAILED: "The job ended without a result, and its pods have ended. The reason is one of the trainer's "
    "([exit codes](exit-codes.md)), or one below.",
    c.READY: "True when the job has succeeded; tools that know kstatus read this condition. The reason of a job that "
    "has ended is that of Complete or Failed.",
}
"""Every condition, in the order in which a job gets them."""
_CONDITIONS_TEXT = """Every condition of a FinetuneJob and every reason that it can have. Names of reasons are part of
the API: programs may compare them. Names in braces stand for values; `{message}` is the message of the cluster or
the trainer. What to do step by step: [troubleshooting](../troubleshooting.md).
"""
_URIS = """What the keys that hold a URI take today. What is not supported yet is refused by name, by the API server
and by `finetune validate`, before anything is scheduled.
"""
_URI_NOTES = """
A plain path is a file or folder inside the pods, or of this machine for `finetune run`. It counts from the current
folder unless it begins with `/`, and may have a colon only after a `/`. Results go to a plain path in a local run
only: on a cluster they would end with the pods.

A claim or ConfigMap is one of the job's namespace. Scheme and name are in lower case. A path on a claim has no empty
part, no `.` and no `..`; nothing after a scheme has spaces, `#`, `?` or `%`.
"""
_EXITS = """How a trainer process ends, and whether another run may succeed: `never`, because the same job fails in
the same way; `budget`, at the cost of one of `lifecycle.maxRestarts`; `free`, because the job is not the cause.
Codes above 128 are signals (128 + number) and cost one of the budget: the pod was killed, most often for its
memory.
"""


def keys_page() -> str:
    """The fate table: every key, what fits, what becomes of it."""
    count = {fate: sum(e.key.fate is fate for e in entries().values()) for fate in Fate}
    counted = ", ".join(f"{number} {fate}" for fate, number in count.items())
    parts = [_page("Keys of a FinetuneJob", f"{_FATES}\n{len(entries())} keys: {counted}.\n")]
    for section, inside in _sections():
        parts.append(f"## {section}\n\n" + _table(("Key", "Fits", "Fate", "Meaning", "Rules"), map(_row, inside)))
    return "\n".join(parts)


def reasons_page() -> str:
    """Every rule, by its reason."""
    reasons = sorted({rule.reason for rule in all_rules()}, key=str.lower)
    parts = [_page("Reasons for which a job is refused", _REASONS)]
    parts.append("## Shape\n\n" + _table(("Reason", "Meaning"), ((f"`{r}`", m) for r, m in _SHAPE.items())))
    for reason in reasons:
        rows = ((f"`{r.path}`", r.message, r.remedy) for r in all_rules() if r.reason == reason)
        parts.append(f"## {reason}\n\n" + _table(("Key", "What is wrong", "Remedy"), rows))
    return "\n".join(parts)


def conditions_page() -> str:
    """Every condition with its reasons."""
    parts = [_page("Conditions of a FinetuneJob", _CONDITIONS_TEXT)]
    for condition, meaning in _CONDITIONS.items():
        rows = [(f"`{r.name}`", r.message, r.remedy) for r in REASONS if condition in r.on]
        parts.append(f"## {condition}\n\n{meaning}\n\n" + _table(("Reason", "Message", "Remedy"), rows))
    return "\n".join(parts)


def exit_codes_page() -> str:
    """Exit codes of the trainer."""
    columns = ("Code", "Reason", "Another run", "Meaning", "Remedy")
    found = exits.MEANINGS.items()
    rows = ((str(int(code)), f"`{m.reason}`", m.retry.value, m.sentence, m.remedy) for code, m in found)
    return _page("Exit codes of the trainer", _EXITS) + "\n" + _table(columns, rows)


def uris_page() -> str:
    """What each key takes today, by scheme."""
    uses = list(dict.fromkeys(uris.KEYS.values()))
    keys = (", ".join(f"`{key}`" for key, each in uris.KEYS.items() if each is use) for use in uses)
    rows = (
        (
            "plain path" if scheme is Scheme.PATH else f"`{scheme}://`",
            *(use.forms[scheme].syntax if scheme in use.forms else "not yet" for use in uses),
        )
        for scheme in Scheme
    )
    return f"{_page('URIs of models, rows and results', _URIS)}\n{_table(('', *keys), rows)}{_URI_NOTES}"


def _page(title: str, text: str) -> str:
    return f"{GENERATED}# {title}\n\n{text}"


def _sections() -> Iterator[tuple[str, list[KeyEntry]]]:
    """Entries by the section they stand in; the top of the spec first."""
    found: dict[str, list[KeyEntry]] = {}
    for entry in entries().values():
        found.setdefault(entry.path.rpartition(".")[0], []).append(entry)
    return ((section or "spec", inside) for section, inside in found.items())


def _row(entry: KeyEntry) -> tuple[str, ...]:
    name = entry.path.rpartition(".")[2]
    rules = ", ".join(dict.fromkeys(f"[{r.reason}](reasons.md#{r.reason.lower()})" for r in entry.rules))
    fits = f"{entry.bounds}{', required' if entry.required else ''}"
    return f"`{name}`", fits, entry.key.fate.value, entry.description, rules


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
