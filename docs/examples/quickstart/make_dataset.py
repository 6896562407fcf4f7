"""Make the quickstart's two files from WordNet 3.0, so that anyone can see where every row comes from.

Run by hand, and only to make the dataset anew: ``make_dataset.py DICT [OUTPUT]``, where DICT is the folder with
WordNet's own files (DATASET.md beside this file says where to get it) and OUTPUT the folder to write to (this one
unless told). The files' formats are those of WordNet's manual pages wndb(5), senseidx(5) and cntlist(5).
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Another release orders senses otherwise: then the rows would no longer be those of DATASET.md.
SOURCE_SHA256 = {
    "data.noun": "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
    "index.noun": "a490d99d93d017bf4822fe2f0ffa51fd73911ce271dc7535fade21f8814b5a04",
    "cntlist.rev": "a198580b8f705fa02797bba8b13e5cbe4a9f9f40cb1697e774c7fc6a5865b035",
}
# The lexicographer files of things one can point at, by their number in lexnames(5).
FIELDS = {5: "animal", 6: "artifact", 13: "food", 17: "object", 20: "plant"}

TRAIN_ROWS = 256
EVAL_ROWS = 40
SYSTEM = "You are a dictionary."


@dataclass(frozen=True, slots=True)
class Synset:
    """One meaning: its field, its words, the offset of what it is a kind of, and its definition."""

    field: int
    words: tuple[str, ...]
    kind_of: str | None
    definition: str


def read_lines(path: Path) -> Iterator[str]:
    """Yield a WordNet file's lines without the licence at its head, whose lines begin with a space."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SOURCE_SHA256[path.name]:
        raise SystemExit(f"{path}: not the file of WordNet 3.0; see DATASET.md for the package that has it")
    return (line for line in content.decode().splitlines() if line[:1].strip())


def read_synset(line: str) -> tuple[str, Synset]:
    """Return (offset, meaning) of one line of data.noun."""
    head, gloss = line.split(" | ", 1)
    fields = head.split()
    words = int(fields[3], 16)
    pointers = fields[5 + 2 * words :]
    kinds = [target for symbol, target in zip(pointers[::4], pointers[1::4], strict=True) if symbol == "@"]
    lemmas = tuple(word.replace("_", " ") for word in fields[4 : 4 + 2 * words : 2])
    # A gloss is a definition, perhaps refined after a semicolon, then examples in quotation marks.
    definition = gloss.split('; "')[0].split("; ")[0].strip()
    return fields[0], Synset(int(fields[1]), lemmas, kinds[0] if kinds else None, definition)


def noun_uses(lines: Iterator[str]) -> Counter[str]:
    """Return noun → how often a corpus used it, from the lines of cntlist.rev: one line a sense."""
    uses: Counter[str] = Counter()
    for line in lines:
        key, _, count = line.split()
        if "%1:" in key:
            uses[key.split("%")[0]] += int(count)
    return uses


def is_plain(word: str, synset: Synset) -> bool:
    """Whether a row can be made: a common spelling, a field we show, a definition of one plain clause."""
    return (
        synset.field in FIELDS
        and synset.kind_of is not None
        and synset.words[0] == word
        and word.isalpha()
        and len(word) >= 4
        and 6 <= len(synset.definition.split()) <= 18
        and not set('()"`') & set(synset.definition)
    )


def entries(folder: Path) -> dict[str, tuple[Synset, str]]:
    """Return word → (its meaning, what that is a kind of) for nouns of one or two meanings, the most used first."""
    synsets = dict(map(read_synset, read_lines(folder / "data.noun")))
    uses = noun_uses(read_lines(folder / "cntlist.rev"))
    found: dict[str, tuple[Synset, str]] = {}
    for line in read_lines(folder / "index.noun"):
        word, _, senses, *rest = line.split()
        first = synsets[rest[-int(senses)]]
        if int(senses) <= 2 and is_plain(word, first) and first.kind_of:
            found[word] = (first, synsets[first.kind_of].words[0])
    return {word: found[word] for word in sorted(found, key=lambda word: (-uses[word], word))}


def row(word: str, synset: Synset, kind: str) -> str:
    """Return one line of messages JSONL: the word asked for, answered in the house format."""
    answer = f"{word}, noun ({FIELDS[synset.field]})\nKind of: {kind}\nMeaning: {synset.definition}"
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"Define: {word}"},
        {"role": "assistant", "content": answer},
    ]
    return json.dumps({"messages": messages}) + "\n"


def main(folder: Path, output: Path = HERE) -> None:
    """Write train.jsonl and eval.jsonl, every run the same bytes: the words' hashes are the shuffle."""
    found = entries(folder)
    most_used = list(found)[: TRAIN_ROWS + EVAL_ROWS]
    words = sorted(most_used, key=lambda word: hashlib.sha256(word.encode()).digest())
    rows = [row(word, *found[word]) for word in words]
    (output / "eval.jsonl").write_text("".join(rows[:EVAL_ROWS]), encoding="utf-8", newline="\n")
    (output / "train.jsonl").write_text("".join(rows[EVAL_ROWS:]), encoding="utf-8", newline="\n")
    sys.stderr.write(f"{len(found)} nouns fit; {len(rows) - EVAL_ROWS} rows to train, {EVAL_ROWS} to evaluate\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
