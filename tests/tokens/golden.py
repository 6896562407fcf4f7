"""The golden masks: conversations, and how each family's tokens of them are trained.

Run this file to rewrite golden/*.json, and review the diff.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune_tokens import ChatTokenizer, prepare
from tokens.families import FAMILIES, dataset, save

GOLDEN = Path(__file__).parent / "golden"

SYSTEM = {"role": "system", "content": "Be kind."}
TALK = [
    {"role": "user", "content": "What is two plus two?"},
    {"role": "assistant", "content": "It is four."},
    {"role": "user", "content": "And three plus three?"},
    {"role": "assistant", "content": "It is six."},
]
TOOL = {"name": "weather", "parameters": {"type": "object"}}
CALL = {"name": "weather", "arguments": {"city": "Rome"}}
STEPS = [
    {"role": "user", "content": "What is the weather in Rome?"},
    {"role": "assistant", "content": None, "reasoning": "I think.", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny."},
]


def with_reasoning(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    return [{**m, "reasoning": text} if m["role"] == "assistant" else m for m in messages]


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chatml": ("chatml", {"messages": [SYSTEM, *TALK]}),
    "chatml-first-answer-not-trained": (
        "chatml",
        {"messages": [TALK[0], {**TALK[1], "weight": 0}, *TALK[2:], {"role": "user", "content": "Goodbye."}]},
    ),
    "headers": ("headers", {"messages": [SYSTEM, *TALK]}),
    "instruct": ("instruct", {"messages": TALK}),
    "turns": ("turns", {"messages": TALK}),
    "thinking": ("thinking", {"messages": [SYSTEM, *with_reasoning(TALK, "I add.")]}),
    "thinking-without-thoughts": ("thinking", {"messages": TALK}),
    "thinking-with-tools": ("thinking", {"messages": STEPS, "tools": [TOOL]}),
    "blocks": ("blocks", {"messages": [SYSTEM, *TALK]}),
    "macros": ("macros", {"messages": [SYSTEM, *with_reasoning(TALK, "I add.")]}),
}


def masks(tokenizer: ChatTokenizer, record: dict[str, Any]) -> list[list[list[Any]]]:
    """Each sequence of a record as [decoded token, whether it is trained]."""
    prepared = prepare(dataset(record), tokenizer, None)
    return [
        [[tokenizer.decode([token]), bool(flag)] for token, flag in zip(*prepared.sequence(i), strict=True)]
        for i in range(len(prepared))
    ]


def written(sequences: list[list[list[Any]]]) -> str:
    """As JSON, one token per line."""
    bodies = [",\n".join(f"  {json.dumps(token, ensure_ascii=False)}" for token in one) for one in sequences]
    return "[\n" + ",\n".join(f" [\n{body}\n ]" for body in bodies) + "\n]\n"


def main() -> None:
    for case, (family, record) in CASES.items():
        with TemporaryDirectory() as folder:
            tokenizer = ChatTokenizer.load(save(Path(folder), FAMILIES[family]))
            (GOLDEN / f"{case}.json").write_text(written(masks(tokenizer, record)), "utf-8")


if __name__ == "__main__":
    main()
