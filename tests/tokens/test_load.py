"""Loading a model's folder: precedence of its files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_tokens import ChatTokenizer, TokenizerRefused
from tokens.families import FAMILIES, dataset, save
from tokens.golden import TALK, TOOL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path, FAMILIES["chatml"])


def configured(folder: Path, **more: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **more}), "utf-8")


def refusal(folder: Path) -> str:
    with pytest.raises(TokenizerRefused) as refused:
        ChatTokenizer.load(folder)
    return str(refused.value).replace(str(folder), "MODEL")


def test_the_template_file_comes_before_the_entry_of_the_configuration(folder: Path) -> None:
    configured(folder, chat_template="from the configuration")
    (folder / "chat_template.jinja").write_text("from the file", "utf-8")
    assert ChatTokenizer.load(folder).templates["default"].source == "from the file"


def test_the_entry_of_the_configuration_serves_without_a_file(folder: Path) -> None:
    configured(folder, chat_template="from the configuration")
    (folder / "chat_template.jinja").unlink()
    assert ChatTokenizer.load(folder).templates["default"].source == "from the configuration"


def test_of_named_templates_rows_with_tools_take_tool_use(folder: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tooled"}]
    configured(folder, chat_template=named)
    (folder / "chat_template.jinja").unlink()
    rows = dataset({"messages": TALK}, {"messages": TALK, "tools": [TOOL]}).rows
    tokenizer = ChatTokenizer.load(folder)
    assert [tokenizer.template_for(row).source for row in rows] == ["plain", "tooled"]


def test_named_templates_may_stand_in_files(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tooled", "utf-8")
    assert set(ChatTokenizer.load(folder).templates) == {"default", "tool_use"}


def test_special_tokens_are_read_as_strings_or_objects_and_from_the_older_map(folder: Path) -> None:
    configured(folder, pad_token={"content": "<|endoftext|>", "lstrip": False}, bos_token=None)
    (folder / "special_tokens_map.json").write_text('{"unk_token": "<|im_start|>"}', "utf-8")
    assert ChatTokenizer.load(folder).special_tokens == {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|im_start|>",
    }


@pytest.mark.parametrize(("stated", "ids"), [(0, {0, 2}), ([0, 1], {0, 1, 2}), (None, {2})])
def test_stop_tokens_come_from_the_tokenizer_and_the_generation_configuration(
    folder: Path, stated: object, ids: set[int]
) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}), "utf-8")
    assert ChatTokenizer.load(folder).stop_ids == ids


def test_truncation_and_padding_of_the_file_are_switched_off(folder: Path) -> None:
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text("utf-8"))
    stored["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    stored["padding"] = {
        "strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip
    path.write_text(json.dumps(stored), "utf-8")
    assert 2 < len(ChatTokenizer.load(folder).encode(["two plus two plus two"])[0].ids) < 99


def test_a_folder_without_tokenizer_json_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert refusal(folder) == (
        "MODEL: tokenizer.json not found; save it with a fast tokenizer: tokenizer.save_pretrained(folder)"
    )


def test_a_tokenizer_json_of_something_else_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}", "utf-8")
    found = refusal(folder)
    assert found.startswith("MODEL/tokenizer.json: not a tokenizer: ")
    assert found.endswith("; save the model again")


def test_a_folder_without_a_chat_template_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert refusal(folder) == (
        "MODEL: no chat template found; add chat_template.jinja, or use an instruction-tuned variant of the model"
    )


def test_templates_without_a_default_are_refused(folder: Path) -> None:
    configured(folder, chat_template=[{"name": "rag", "template": "x"}])
    (folder / "chat_template.jinja").unlink()
    assert refusal(folder) == (
        "MODEL: no chat template is named default; "
        "add chat_template.jinja, or use an instruction-tuned variant of the model"
    )


def test_a_template_that_is_not_jinja_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for %}", "utf-8")
    assert refusal(folder) == (
        "MODEL: the chat template is not valid Jinja: "
        "Expected an expression, got 'end of statement block'; correct it"
    )


def test_a_configuration_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{", "utf-8")
    assert refusal(folder).startswith("MODEL/generation_config.json: not JSON: ")


def test_two_files_that_disagree_about_a_token_are_refused(folder: Path) -> None:
    configured(folder, added_tokens_decoder={"7": {"content": "<|im_end|>"}})
    assert refusal(folder) == (
        "MODEL: tokenizer_config.json gives '<|im_end|>' the id 7, tokenizer.json does not; save the tokenizer again"
    )
