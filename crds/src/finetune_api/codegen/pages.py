"""The pages of docs/reference that follow from models, rules and exit codes. Called by __main__."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from finetune_api.resource.key_table import Fate
from finetune_api.runtime import exits
from finetune_api.validation.rules import Rule, all_rules

from .reference import Entry, entries

NOTE = "<!-- Generated from crds/src/finetune_api by `python -m finetune_api generate`; `make verify` compares. -->\n"

_FATES = """Every key of a job has one of three fates. **Honoured**: something reads it. **Informational**: it is
accepted, named in `status.informational` and by `finetune validate`, and changes nothing. **Refused**: it is
known, and the job is refused with the reason. A key that is not in these tables is refused by name. Where a
rule is named, the API server and `finetune validate` both judge it; see [reasons](reasons.md).
"""
_REASONS = """What is said of a job that cannot be accepted. The API server and `finetune validate` judge by the
same rules; `finetune validate` and the condition `Accepted` carry the reason, the API server the sentence.
"""
_SHAPE = {
    "BadName": "`metadata.name` is not a legal name; names of pods are made from it.",
    "BadValue": "A value has the wrong type or lies outside its bounds.",
    "Missing": "A required key is not there.",
    "NotJson": "A value is one that JSON does not have, such as an unquoted date.",
    "UnknownKey": "Nobody declared the key. The remedy names the nearest one.",
    "UnknownValue": "A choice is none of those that are listed.",
    "WrongKind": "The document is not a FinetuneJob of this version.",
}
"""What check.py says besides the rules."""
_EXITS = """How a trainer process ends, and whether another run may mend it: `never`, because the same job fails in
the same way; `budget`, at the cost of one of `lifecycle.maxRestarts`; `free`, because the job is not to blame.
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
        rows = ((f"`{r.path}`", r.message, r.remedy) for r in _once(reason))
        parts.append(f"## {reason}\n\n" + _table(("Key", "What is wrong", "Remedy"), rows))
    return "\n".join(parts)


def exit_codes_page() -> str:
    """Exit codes of the trainer."""
    columns = ("Code", "Reason", "Another run", "Meaning", "Remedy")
    found = exits.MEANINGS.items()
    rows = ((str(int(code)), f"`{m.reason}`", m.retry.value, m.sentence, m.remedy) for code, m in found)
    return _page("Exit codes of the trainer", _EXITS) + "\n" + _table(columns, rows)


def _page(title: str, text: str) -> str:
    return f"{NOTE}# {title}\n\n{text}"


def _sections() -> Iterator[tuple[str, list[Entry]]]:
    """Entries by the section they stand in; the top of the spec first."""
    found: dict[str, list[Entry]] = {}
    for entry in entries().values():
        found.setdefault(entry.path.rpartition(".")[0], []).append(entry)
    return ((section or "spec", inside) for section, inside in found.items())


def _row(entry: Entry) -> tuple[str, ...]:
    name = entry.path.rpartition(".")[2]
    rules = ", ".join(dict.fromkeys(f"[{r.reason}](reasons.md#{r.reason.lower()})" for r in entry.rules))
    fits = f"{entry.bounds}{', required' if entry.required else ''}"
    return f"`{name}`", fits, entry.key.fate.value, entry.description, rules


def _once(reason: str) -> Iterable[Rule]:
    return dict.fromkeys(rule for rule in all_rules() if rule.reason == reason)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
