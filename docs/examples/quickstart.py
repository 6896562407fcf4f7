"""Finetune a real small model on this machine, and show what changed. `make quickstart` runs it.

Four steps that you can do by hand: fetch the model, `finetune run docs/examples/quickstart.yaml`, load the
adapter with plain PEFT, and ask both models the same questions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fetch_model
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
OUTPUT = Path("quickstart-output")
QUESTIONS = ("factory", "refrigerator", "boat")
"""Held-out words."""
LONGEST_ANSWER = 48


def main() -> int:
    began = time.monotonic()
    os.environ.setdefault("TQDM_DISABLE", "1")
    folder = fetch_model.cached_folder()
    if not fetch_model.is_whole(folder):
        fetch_model.fetch(folder)
    fetch_model.say(f"model: {fetch_model.SOURCE['model']}; {fetch_model.SOURCE['note']}")
    finetune = Path(sys.executable).with_name("finetune")
    job = HERE / "quickstart.yaml"
    code = subprocess.run([finetune, "run", job, "--model", folder, "--output", OUTPUT], check=False).returncode
    if code:
        return code
    report = json.loads((OUTPUT / "report.json").read_text())
    show_answers(folder, Path(report["result"]))
    before, after = report["metrics"]["val.loss.initial"], report["metrics"]["val.loss"]
    # Mean negative log likelihood per target token, in nats, on the held-out rows.
    say(f"\nrows        {rows('train')} to train on, {rows('eval')} held out")
    say(f"eval loss   {before:.4f} before, {after:.4f} after: x {after / before:.2f}")
    say(f"adapter     {report['result']}")
    say(f"time        {time.monotonic() - began:.0f} s")
    return 0


def show_answers(base: Path, adapter: Path) -> None:
    """Ask held-out questions before and after; the adapter is loaded by PEFT alone."""
    from peft import PeftModel  # noqa: PLC0415 - seconds that a failed run need not spend

    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = AutoModelForCausalLM.from_pretrained(base)
    asked = {f"Define: {word}" for word in QUESTIONS}
    questions = [messages[:-1] for messages in _held_out() if messages[-2]["content"] in asked]
    before = [answer(model, tokenizer, q) for q in questions]
    tuned = PeftModel.from_pretrained(model, str(adapter))
    for question, first in zip(questions, before, strict=True):
        say(f"\nquestion    {question[-1]['content']}")
        say(f"before      {_indented(first)}")
        say(f"after       {_indented(answer(tuned, tokenizer, question))}")


def answer(model: Any, tokenizer: Any, question: list[dict[str, str]]) -> str:
    """The model's most likely answer."""
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
    text: str = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()


def rows(split: str) -> int:
    return sum(1 for _ in (HERE / "quickstart" / f"{split}.jsonl").open())


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _held_out() -> Iterator[list[dict[str, str]]]:
    with (HERE / "quickstart" / "eval.jsonl").open() as lines:
        for line in lines:
            yield json.loads(line)["messages"]


def _indented(text: str) -> str:
    return text.replace("\n", "\n            ")


if __name__ == "__main__":
    raise SystemExit(main())
