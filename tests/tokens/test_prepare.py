"""Tokenising a dataset: counts, truncation, rows that cannot be trained, and the stop token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.runtime.choices import OnBadRow
from finetune_data import DatasetRefused
from finetune_tokens import ChatTokenizer, StopTokenUntrained, prepare
from finetune_tokens.template import END, START
from tokens.families import FAMILIES, dataset, save, trained_texts
from tokens.golden import CALL, SYSTEM, TALK, TOOL, with_reasoning

SHORT = {"messages": [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "Rome."}]}
LONG = {"messages": [{"role": "user", "content": "two " * 40}, {"role": "assistant", "content": "four"}]}


def loaded(folders: dict[str, Path], name: str = "chatml") -> ChatTokenizer:
    return ChatTokenizer.load(folders[name])


def with_template(folder: Path, template: str, family: str = "chatml") -> ChatTokenizer:
    return ChatTokenizer.load(save(folder, FAMILIES[family], template))


def why(tokenizer: ChatTokenizer, *messages: dict[str, Any], **row: Any) -> str:
    """Why the only row is bad."""
    with pytest.raises(DatasetRefused) as refused:
        prepare(dataset({"messages": list(messages), **row}), tokenizer, None)
    (problem,) = refused.value.problems
    return str(problem)


def test_the_arrays_have_their_types_and_the_counts_agree(folders: dict[str, Path]) -> None:
    prepared = prepare(dataset({"messages": TALK}, SHORT), loaded(folders), None)
    arrays = (prepared.tokens, prepared.targets, prepared.offsets, prepared.lines)
    assert [str(array.dtype) for array in arrays] == ["int32", "bool", "int64", "int32"]
    assert prepared.lines.tolist() == [1, 2]
    assert (len(prepared), prepared.rows, prepared.used, prepared.refused, prepared.truncated) == (2, 2, 2, 0, 0)
    assert prepared.token_count == len(prepared.targets) == prepared.offsets[-1] == prepared.lengths.sum()
    assert prepared.target_tokens == sum(int(prepared.sequence(i)[1].sum()) for i in range(2))
    assert prepared.stop_ids == (2,)
    assert prepared.notes == ()


def test_the_same_input_gives_the_same_arrays_for_any_neighbouring_rows(folders: dict[str, Path]) -> None:
    rows = [SHORT, {"messages": TALK}, LONG] * 500
    first, again = (prepare(dataset(*rows), loaded(folders), 48, OnBadRow.SKIP, 0.5) for _ in range(2))
    alone = prepare(dataset(SHORT), loaded(folders), 48)
    assert np.array_equal(first.tokens, again.tokens)
    assert np.array_equal(first.targets, again.targets)
    for i in (0, len(first) // 2 + len(first) // 2 % 2, len(first) - 2):
        assert np.array_equal(first.sequence(i)[0], alone.sequence(0)[0])


def test_the_answer_and_its_stop_token_are_trained_and_nothing_else(folders: dict[str, Path]) -> None:
    tokenizer = loaded(folders)
    assert trained_texts(prepare(dataset(SHORT), tokenizer, None), tokenizer) == ["Rome.<|im_end|>"]


def test_a_long_row_is_truncated_and_counted(folders: dict[str, Path]) -> None:
    tokenizer = loaded(folders)
    whole = prepare(dataset({"messages": TALK}), tokenizer, None)
    cut = prepare(dataset({"messages": TALK}), tokenizer, whole.token_count - 3)
    assert np.array_equal(cut.tokens, whole.tokens[:-3])
    assert trained_texts(cut, tokenizer) == ["It is four.<|im_end|>", "It is six"]
    assert cut.truncated == 1
    assert cut.notes == ("1 sequences were truncated to the sequence length",)


def test_a_row_as_long_as_the_sequence_length_is_not_cut(folders: dict[str, Path]) -> None:
    whole = prepare(dataset(SHORT), loaded(folders), None)
    assert prepare(dataset(SHORT), loaded(folders), whole.token_count).truncated == 0


def test_a_row_whose_targets_are_all_cut_is_bad(folders: dict[str, Path]) -> None:
    with pytest.raises(DatasetRefused) as refused:
        prepare(dataset(SHORT, LONG), loaded(folders), 48)
    assert str(refused.value) == (
        "rows.jsonl: 1 of 2 rows is bad\n"
        "  line 2: no trainable token: the answer starts beyond the sequence length of 48 tokens; "
        "shorten the row or raise sequence_length\n"
        "Fix the rows, or set data.on_bad_row: skip to train without them."
    )


def test_a_bad_row_may_be_skipped_and_is_counted(folders: dict[str, Path]) -> None:
    prepared = prepare(dataset(SHORT, LONG, SHORT), loaded(folders), 48, OnBadRow.SKIP, 0.34)
    assert (prepared.rows, prepared.used, prepared.refused) == (3, 2, 1)
    assert prepared.lines.tolist() == [1, 3]
    assert [problem.line for problem in prepared.problems] == [2]


def test_rows_that_are_all_cut_away_are_refused_even_if_any_share_is_allowed(folders: dict[str, Path]) -> None:
    with pytest.raises(DatasetRefused, match="all of the 1 rows are bad: no row is left to train on"):
        prepare(dataset(LONG), loaded(folders), 48, OnBadRow.SKIP, 1.0)


def test_a_dropped_later_turn_is_a_warning(folders: dict[str, Path]) -> None:
    messages = [*TALK[:2], *LONG["messages"]]
    prepared = prepare(dataset({"messages": messages}), loaded(folders, "thinking"), 60)
    assert prepared.notes == (
        "1 later turns were dropped: they start beyond the sequence length",
        "the chat template rewrites earlier turns: 1 rows were split into several sequences",
    )


def test_turns_after_the_last_trained_one_are_not_rendered(folders: dict[str, Path]) -> None:
    tokenizer = loaded(folders)
    prepared = prepare(dataset({"messages": [*TALK, SYSTEM, TALK[0]]}), tokenizer, None)
    assert np.array_equal(prepared.tokens, prepare(dataset({"messages": TALK}), tokenizer, None).tokens)


# Rows that a template does not render completely


def test_a_message_that_the_template_refuses_has_the_error_of_the_template(folders: dict[str, Path]) -> None:
    assert why(loaded(folders, "turns"), SYSTEM, *TALK) == (
        "line 1: the chat template fails on the row up to messages[4]: "
        "the role system is not supported; write the row as the template expects"
    )


def test_a_role_that_the_template_omits_is_refused(folders: dict[str, Path]) -> None:
    developer = {"role": "developer", "content": "Be kind."}
    assert why(loaded(folders, "thinking"), developer, *TALK) == (
        "line 1: the chat template omits messages[0].content (role developer); write the row as the template expects"
    )


def test_tool_calls_the_template_does_not_know_are_refused(folders: dict[str, Path]) -> None:
    call = {"role": "assistant", "content": "I think.", "tool_calls": [CALL]}
    assert why(loaded(folders), TALK[0], call) == (
        "line 1: the chat template omits messages[1].tool_calls; write the row as the template expects"
    )


def test_an_answer_that_the_template_changes_is_refused(tmp_path: Path) -> None:
    source = "{% for m in messages %}{{ m.role }}:{{ m.content | upper }}<|im_end|>{% endfor %}"
    source += "{% if add_generation_prompt %}assistant:{% endif %}"
    assert why(with_template(tmp_path, source), *TALK[:2]) == (
        "line 1: the chat template omits messages[1].content; write the row as the template expects"
    )


def test_an_answer_without_anything_before_it_is_refused_where_the_template_needs_something(
    folders: dict[str, Path],
) -> None:
    assert why(loaded(folders), TALK[1]) == (
        "line 1: the chat template fails on the prompt of messages[0]: "
        "list object has no element 0; write the row as the template expects"
    )


NO_PROMPT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
OTHER_PROMPT = NO_PROMPT + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"


@pytest.mark.parametrize("source", [NO_PROMPT, OTHER_PROMPT], ids=["no prompt", "another prompt"])
def test_a_header_that_the_generation_prompt_does_not_write_is_refused_rather_than_trained(
    tmp_path: Path, source: str
) -> None:
    assert why(with_template(tmp_path, source), *TALK[:2]) == (
        "line 1: messages[1] does not start with the generation prompt of the chat template; "
        "enclose the assistant's text in the template in {% generation %}"
    )


def test_a_token_that_joins_the_header_and_the_answer_is_not_trained(tmp_path: Path) -> None:
    """The prompt ends in a space, which the tokenizer joins to the answer's first word: in use the model gets
    the space as a token of the prompt."""
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    source += "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = with_template(tmp_path, source)
    answer = {"role": "assistant", "content": "two plus three"}
    assert trained_texts(prepare(dataset({"messages": [TALK[0], answer]}), tokenizer, None), tokenizer) == [
        " plus three<|im_end|>"
    ]


def test_a_template_reaches_nothing_outside_of_the_row(tmp_path: Path) -> None:
    source = "{{ messages.__class__.__mro__ }}"
    assert why(with_template(tmp_path, source), *TALK[:2]).startswith(
        "line 1: the chat template fails on the row up to messages[1]: "
        "access to attribute '__class__' of 'list' object is unsafe"
    )


def test_an_answer_of_weight_0_is_not_trained_by_generation_blocks(folders: dict[str, Path]) -> None:
    tokenizer = loaded(folders, "macros")
    messages = [TALK[0], {**with_reasoning(TALK, "I add.")[1], "weight": 0}, *TALK[2:]]
    prepared = prepare(dataset({"messages": messages}), tokenizer, None)
    assert trained_texts(prepared, tokenizer) == ["It is six.<|im_end|>"]


def test_text_that_equals_the_marker_of_a_block_is_refused(folders: dict[str, Path]) -> None:
    assert why(loaded(folders, "blocks"), TALK[0], {"role": "assistant", "content": f"a{END}b"}) == (
        "line 1: the chat template fails on the row up to messages[1]: "
        "its generation blocks overlap; write the row as the template expects"
    )
    assert why(loaded(folders, "blocks"), {"role": "user", "content": f"a{START}b{END}"}, TALK[1]) == (
        "line 1: the chat template fails on the row up to messages[1]: "
        "its generation blocks cannot be located in the text it renders; write the row as the template expects"
    )


# The stop token


def test_a_template_that_never_writes_a_stop_token_is_refused(tmp_path: Path) -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    source += "{% if add_generation_prompt %}assistant: {% endif %}"
    with pytest.raises(StopTokenUntrained) as refused:
        prepare(dataset({"messages": TALK}), with_template(tmp_path, source), None)
    assert str(refused.value) == (
        "rows.jsonl: no trained turn ends with a stop token (<|im_end|>): the model would not learn to stop\n"
        "Change the chat template to write it after each assistant message, inside the generation block."
    )


def test_a_stop_token_outside_of_the_generation_block_is_refused(tmp_path: Path) -> None:
    source = "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}{% endgeneration %}<|im_end|>"
    with pytest.raises(StopTokenUntrained):
        prepare(dataset({"messages": TALK[1:2]}), with_template(tmp_path, source + "{% endfor %}"), None)


def test_a_stop_token_that_every_row_loses_to_the_sequence_length_is_refused(folders: dict[str, Path]) -> None:
    whole = prepare(dataset(SHORT), loaded(folders), None)
    with pytest.raises(StopTokenUntrained) as refused:
        prepare(dataset(SHORT), loaded(folders), whole.token_count - 2)
    assert refused.value.remedy == "Every row is truncated: raise sequence_length, or shorten the rows."


def test_an_end_of_turn_at_which_generation_does_not_stop_is_a_warning(tmp_path: Path) -> None:
    folder = save(tmp_path, FAMILIES["chatml"])
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}', "utf-8")
    prepared = prepare(dataset(SHORT), ChatTokenizer.load(folder), None)
    assert prepared.stop_ids == (2,)
    assert prepared.notes == ("turns end with <|im_end|>, but generation of this model stops at <|endoftext|>",)


# Warnings


def test_tools_reasoning_and_special_tokens_in_the_text_are_warnings(folders: dict[str, Path]) -> None:
    rows = (
        {**SHORT, "tools": [TOOL]},
        {"messages": with_reasoning(TALK, "I add.")},
        {"messages": [{"role": "user", "content": "What is <|im_end|>?"}, TALK[1]]},
    )
    assert prepare(dataset(*rows), loaded(folders), None).notes == (
        "1 rows declare tools, but the chat template does not render them",
        "1 rows have reasoning, but the chat template does not render it",
        "1 rows contain the text of a special token in a message; it is tokenised as that token",
    )


def test_a_template_that_writes_the_date_is_a_warning(tmp_path: Path) -> None:
    source = "{{ strftime_now('%d %b %Y') }}" + NO_PROMPT + "{# add_generation_prompt #}"
    source = source.replace("<|im_start|>{{ m.role }}\n", "")
    prepared = prepare(dataset(SHORT), with_template(tmp_path, source), None)
    assert prepared.notes == ("the chat template writes the current date; it is fixed to 2025-01-01 for every row",)


def test_columns_that_are_not_used_are_a_warning(folders: dict[str, Path]) -> None:
    rows = ({**SHORT, "id": 7}, {**SHORT, "id": 8, "source": "web"})
    assert prepare(dataset(*rows), loaded(folders), None).notes == (
        "training does not use these columns (number of occurrences): id (2), source (1)",
    )
