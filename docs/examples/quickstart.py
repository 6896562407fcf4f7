"""Finetunes a small model on this machine, and compares its answers before and after. `make quickstart` runs it.

The same four steps by hand: download the model, `finetune run docs/examples/quickstart.yaml`, load the
adapter with PEFT, and ask both models the same questions.
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
"""Words of the validation rows."""
MAX_ANSWER_TOKENS = 48


def main() -> int:
    started_at = time.monotonic()
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
    print_line(f"\nrows        {rows('train')} to train on, {rows('eval')} held out")
    print_line(f"eval loss   {before:.4f} before, {after:.4f} after: x {after / before:.2f}")
    print_line(f"adapter     {report['result']}")
    print_line(f"time        {time.monotonic() - started_at:.0f} s")
    return 0


def show_answers(base: Path, adapter: Path) -> None:
    """Ask questions of the validation rows before and after; only PEFT loads the adapter."""
    from peft import PeftModel  # noqa: PLC0415 - it takes seconds, which a failed run saves

    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = AutoModelForCausalLM.from_pretrained(base)
    prompts = {f"Define: {word}" for word in QUESTIONS}
    questions = [messages[:-1] for messages in _held_out() if messages[-2]["content"] in prompts]
    before = [answer(model, tokenizer, q) for q in questions]
    tuned = PeftModel.from_pretrained(model, str(adapter))
    for question, first in zip(questions, before, strict=True):
        print_line(f"\nquestion    {question[-1]['content']}")
        print_line(f"before      {_indented(first)}")
        print_line(f"after       {_indented(answer(tuned, tokenizer, question))}")


def answer(model: Any, tokenizer: Any, question: list[dict[str, str]]) -> str:
    """The model's most likely answer."""
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(**inputs, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False)
    text: str = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()


def rows(split: str) -> int:
    return sum(1 for _ in (HERE / "quickstart" / f"{split}.jsonl").open())


def print_line(line: str) -> None:
    sys.stdout.write(line + "\n")


def _held_out() -> Iterator[list[dict[str, str]]]:
    with (HERE / "quickstart" / "eval.jsonl").open() as lines:
        for line in lines:
            yield json.loads(line)["messages"]


def _indented(text: str) -> str:
    return text.replace("\n", "\n            ")


if __name__ == "__main__":
    raise SystemExit(main())
