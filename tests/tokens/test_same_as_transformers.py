"""transformers is the oracle: the same text, the same tokens, and the same masks where it can make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from finetune_tokens import ChatTokenizer
from finetune_tokens.conversation import template_messages
from finetune_tokens.template import NOW, ChatTemplate
from tokens.families import FAMILIES, dataset, save
from tokens.golden import CALL, CASES, STEPS, SYSTEM, TALK, TOOL, masks

UNUSUAL = [
    {"role": "user", "content": 'a "quoted" <b>&amp; 日本 \u2028 {{ x }}', "name": "Ann"},
    {"role": "assistant", "content": "  é\n\n", "reasoning_content": "hm"},
]
TOOLED = [
    SYSTEM,
    STEPS[0],
    {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": CALL}]},
    {"role": "tool", "content": '{"sky": "sunny"}', "tool_call_id": "c1"},
    {"role": "assistant", "content": "It is sunny."},
]
NESTED = {"type": "function", "function": {**TOOL, "description": '<é & "ü">'}}
RENDERED: dict[str, tuple[str, dict[str, Any]]] = {
    **{case: (family, record) for case, (family, record) in CASES.items() if "tools" not in record},
    **{f"{name}: unusual text": (name, {"messages": UNUSUAL}) for name in FAMILIES},
    "thinking: tools": ("thinking", {"messages": TOOLED, "tools": [NESTED]}),
}


def oracle(folder: Path) -> Any:
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("prompt", [False, True], ids=["whole", "with the generation prompt"])
@pytest.mark.parametrize(("family", "record"), RENDERED.values(), ids=RENDERED.keys())
def test_text_and_tokens_are_those_of_apply_chat_template(
    folders: dict[str, Path], family: str, record: dict[str, Any], prompt: bool
) -> None:
    ours, theirs = ChatTokenizer.load(folders[family]), oracle(folders[family])
    row = dataset(record).rows[0]
    text = ours.template_for(row).render(template_messages(row), row.tools, prompt=prompt)
    asked = {"tools": record.get("tools"), "add_generation_prompt": prompt}
    assert text == theirs.apply_chat_template(record["messages"], tokenize=False, **asked)
    tokens = theirs.apply_chat_template(record["messages"], return_dict=False, **asked)
    assert ours.encode([text])[0].ids == tokens


def test_masks_of_generation_blocks_are_those_of_transformers(folders: dict[str, Path]) -> None:
    record = {"messages": [SYSTEM, *TALK]}
    theirs = oracle(folders["blocks"]).apply_chat_template(
        record["messages"], return_dict=True, return_assistant_tokens_mask=True
    )
    (ours,) = masks(ChatTokenizer.load(folders["blocks"]), record)
    assert [int(trained) for _, trained in ours] == theirs["assistant_masks"]


TEMPLATES = {
    "JSON with an indent": "{{ messages | tojson(indent=2) }}",
    "JSON, sorted": "{{ messages | tojson(sort_keys=true, separators=[',', ':']) }}",
    "a loop with break and continue": (
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}"
    ),
    "blocks that are trimmed": "{% for m in messages %}\n  {% if m %}\n  {{ m.role }}\n  {% endif %}\n{% endfor %}",
    "special tokens by name": "{{ bos_token }}{{ eos_token }}{{ unk_token is defined }}{{ pad_token is defined }}",
    "what is there without tools": "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}",
    "a namespace and a dict": "{% set n = namespace(a=1) %}{% set n.a = dict(b=2) %}{{ n.a.b }}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_the_language_of_templates_is_that_of_transformers(tmp_path: Path, template: str) -> None:
    folder = save(tmp_path, FAMILIES["headers"], template)
    row = dataset({"messages": UNUSUAL}).rows[0]
    ours = ChatTokenizer.load(folder).template_for(row).render(template_messages(row), row.tools)
    assert ours == oracle(folder).apply_chat_template(UNUSUAL, tokenize=False)


def test_the_date_is_the_same_every_day() -> None:
    template = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", {})
    assert template.render([]) == f"{NOW:%Y-%m-%d}" == "2025-01-01"
