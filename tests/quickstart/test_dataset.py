"""The quickstart's rows: whole, small, and evaluated on what was not trained."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from finetune_data.read import read

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "examples" / "quickstart"
TRAIN = FOLDER / "train.jsonl"
EVAL = FOLDER / "eval.jsonl"
ENTRY = re.compile(r"(?P<word>[a-z]+), noun \([a-z]+\)\nKind of: \S.*\nMeaning: \S.*")


def turns(path: Path) -> list[list[dict[str, str]]]:
    """Return the messages of each row."""
    return [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]


def answers(path: Path) -> list[str]:
    """Return what each row's assistant says."""
    return [messages[-1]["content"] for messages in turns(path)]


def grams(answer: str, length: int = 13) -> Iterator[tuple[str, ...]]:
    """Yield every `length` words in a row, lower-cased, without punctuation; a shorter answer counts as a whole."""
    words = re.findall(r"[a-z0-9]+", answer.lower())
    for start in range(max(1, len(words) - length + 1)):
        yield tuple(words[start : start + length])


def shared(trained: Iterable[str], held_out: Iterable[str]) -> set[tuple[str, ...]]:
    """Return the word sequences that answers on both sides have."""
    return {gram for answer in trained for gram in grams(answer)} & {
        gram for answer in held_out for gram in grams(answer)
    }


@pytest.mark.parametrize(("path", "rows"), [(TRAIN, 256), (EVAL, 40)], ids=["training", "evaluation"])
def test_the_data_layer_takes_every_row(path: Path, rows: int) -> None:
    dataset = read(path)
    assert (len(dataset.rows), dataset.problem_count) == (rows, 0)


@pytest.mark.parametrize("path", [TRAIN, EVAL], ids=["training", "evaluation"])
def test_every_row_asks_for_a_word_and_answers_with_its_entry(path: Path) -> None:
    for system, user, assistant in turns(path):
        entry = ENTRY.fullmatch(assistant["content"])
        assert entry, assistant
        assert system == {"role": "system", "content": "You are a dictionary."}
        assert user == {"role": "user", "content": f"Define: {entry['word']}"}
        assert assistant["role"] == "assistant"


def test_no_word_is_asked_for_twice() -> None:
    asked = [messages[1]["content"] for messages in turns(TRAIN) + turns(EVAL)]
    assert len(set(asked)) == len(asked)


def test_evaluation_shares_no_13_words_in_a_row_with_training() -> None:
    assert shared(answers(TRAIN), answers(EVAL)) == set()


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ("one two three four five six seven eight nine ten eleven twelve thirteen", 1),
        ("Zero: One, two -- three. FOUR five six\nseven eight nine ten (eleven) twelve thirteen!", 1),
        ("one two three four five six seven eight nine ten eleven twelve", 0),
        ("lake, noun (object)", 1),
    ],
    ids=[
        "thirteen words in a row",
        "the same with other punctuation and case",
        "twelve words are not enough",
        "a short answer that is the same as a whole",
    ],
)
def test_an_overlap_is_found(planted: str, found: int) -> None:
    trained = [
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen",
        "Lake, noun (object)",
    ]
    assert len(shared(trained, [planted])) == found


def test_both_files_together_stay_small() -> None:
    assert TRAIN.stat().st_size + EVAL.stat().st_size < 300_000
