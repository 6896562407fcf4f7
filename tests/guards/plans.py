"""2,000 sampled plans, each as two hashes: `full`, and `structure`, which omits messages.

    PYTHONPATH=tests .venv/bin/python -m guards.plans --show 17   # the plan of sample 17, to compare two trees
    PYTHONPATH=tests .venv/bin/python -m guards.plans --input 17  # what it follows from
    PYTHONPATH=tests .venv/bin/python -m guards.plans --count     # what the samples reach

Hashes of wording change when messages get better; `GUARDS=rewrite pytest tests/guards` records them again. A
changed structure means that the operator acts differently.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from . import jobs, simulate
from .simulate import Sample

RECORDED = Path(__file__).with_name("plans.json")
VERSION = 4
"""Of the sampler: raise it where the same number is another sample than before."""
COUNT = 2000
SENTENCES = ("message", "remedy", "sentence", "methodReason", "reasons")
"""Keys of an answer whose values are words for people."""


@cache
def samples() -> tuple[Sample, ...]:
    """All of them, in order."""
    return tuple(sample for number in range(COUNT // simulate.PASSES) for sample in simulate.history(number))


def one(number: int) -> Sample:
    """Sample `number` alone."""
    history, each = divmod(number, simulate.PASSES)
    return list(simulate.history(history))[each]


def hashes(sample: Sample) -> tuple[str, str]:
    """Of the structure, and of everything."""
    return _hash(structure(sample.answer)), _hash(sample.answer)


def structure(answer: Any, parent: str = "") -> Any:
    """An answer without sentences."""
    if isinstance(answer, dict):
        return {k: "..." if _is_said(k, parent) else structure(v, k) for k, v in answer.items()}
    return [structure(value, parent) for value in answer] if isinstance(answer, list) else answer


def _is_said(key: str, parent: str) -> bool:
    return key in SENTENCES or (parent, key) == ("network", "reason")  # elsewhere a reason is one word for programs


def canonical(data: Any) -> str:
    """One text for equal data, in lines that can be compared."""
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False)


def reached(found: Iterable[Sample]) -> dict[str, Counter[str]]:
    """How often the samples say each key, and how often each kind of answer follows."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("verdict", "keys", "phase", "actions", "reasons")}
    for sample in found:
        spec, answer = sample.observation["job"]["spec"], sample.answer
        counts["verdict"]["refused" if answer["verdict"]["problems"] else "accepted"] += 1
        counts["keys"].update(jobs.paths(spec))
        counts["phase"][answer["status"].get("phase", "none")] += 1
        counts["actions"].update(["none"] if not answer["actions"] else [next(iter(a)) for a in answer["actions"]])
        counts["actions"]["remember"] += bool(answer["remember"])
        counts["actions"]["requeue"] += answer["requeue_after"] is not None
        counts["reasons"].update({f"{c['type']}={c['reason']}" for c in answer["status"].get("conditions", ())})
    return counts


def recorded() -> list[tuple[str, str]]:
    """The hashes as they were recorded, by number."""
    found = json.loads(RECORDED.read_text())
    assert found["version"] == VERSION, "the sampler has changed: record the plans again with the older product"
    return [(structure, full) for structure, full in found["hashes"]]


def record(found: Iterable[tuple[str, str]]) -> None:
    lines = ",\n".join(json.dumps(pair) for pair in found)
    RECORDED.write_text(f'{{"version": {VERSION}, "hashes": [\n{lines}\n]}}\n')


def _hash(data: Any) -> str:
    return hashlib.sha256(canonical(data).encode()).hexdigest()[:12]


def _counted() -> Iterator[str]:
    for name, counts in reached(samples()).items():
        yield f"{name}:"
        yield from (f"  {count:5} {what}" for what, count in counts.most_common())
        missing = [path for path in jobs.KEYS if path not in counts] if name == "keys" else []
        yield from (f"      0 {path}" for path in missing)


def main() -> None:
    parser = argparse.ArgumentParser(prog="guards.plans", description="Show sampled plans.")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--show", type=int, metavar="N", help="the answer of sample N")
    choice.add_argument("--input", type=int, metavar="N", help="observation, settings and time of sample N")
    choice.add_argument("--count", action="store_true", help="what the samples reach")
    asked = parser.parse_args()
    if asked.count:
        print("\n".join(_counted()))
    elif asked.show is not None:
        print(canonical(one(asked.show).answer))
    else:
        sample = one(asked.input)
        print(canonical({"observation": sample.observation, "settings": sample.settings, "now": sample.now}))


if __name__ == "__main__":
    main()
