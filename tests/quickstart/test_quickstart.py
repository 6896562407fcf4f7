"""The quickstart's own job, cut short: the real model, the real command, and plain PEFT as the judge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fetch_model
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
JOB = EXAMPLES / "quickstart.yaml"
HELD_OUT = EXAMPLES / "quickstart" / "eval.jsonl"


@pytest.fixture(scope="session")
def model() -> Path:
    folder = fetch_model.cached_folder()
    if not fetch_model.is_whole(folder):
        fetch_model.fetch(folder)
    return folder


def run(model: Path, folder: Path, *options: str) -> dict[str, Any]:
    """Run the quickstart's job on 8 rows from the repository's root; return the final report."""
    few = folder / "eval.jsonl"
    few.write_text("".join(f"{line}\n" for line in held_out()))
    finetune, output = str(Path(sys.executable).with_name("finetune")), str(folder / "out")
    command = [finetune, "run", str(JOB), "--quiet", "--model", str(model), "--output", output, "--examples", "8"]
    command += ["--set", f"data.validation_path={few}", *options]
    done = subprocess.run(command, cwd=EXAMPLES.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    return report


def held_out() -> list[str]:
    """Enough rows to tell two models apart, few enough for a test."""
    return HELD_OUT.read_text().splitlines()[:8]


@pytest.mark.timeout(600)
def test_plain_peft_finds_the_loss_that_was_reported(model: Path, tmp_path: Path) -> None:
    metrics = run(model, tmp_path, "--set", "hyperparameters.warmup_ratio=0")["metrics"]
    base = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "result")
    assert held_out_loss(base, tokenizer) == pytest.approx(metrics["val.loss.initial"], abs=1e-4)
    tuned = PeftModel.from_pretrained(base, str(tmp_path / "out" / "result"))
    assert held_out_loss(tuned, tokenizer) == pytest.approx(metrics["val.loss"], abs=1e-4)
    assert metrics["val.loss"] < 0.9 * metrics["val.loss.initial"]


@pytest.mark.timeout(600)
def test_a_learning_rate_of_nothing_changes_nothing(model: Path, tmp_path: Path) -> None:
    metrics = run(model, tmp_path, "--set", "hyperparameters.learning_rate=1e-12")["metrics"]
    assert metrics["val.loss"] == pytest.approx(metrics["val.loss.initial"], rel=0.01)


@torch.no_grad()
def held_out_loss(model: Any, tokenizer: Any) -> float:
    """Mean loss of the answers and their stop tokens, one row at a time, by nothing but transformers."""
    model.eval()
    total, count = 0.0, 0
    for line in held_out():
        messages = json.loads(line)["messages"]
        form = {"tokenize": False}
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **form)
        text = tokenizer.apply_chat_template(messages, **form).removesuffix("\n")  # what follows the stop token
        tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        logits = model(input_ids=tokens).logits[0, start - 1 : -1].float()
        total += float(torch.nn.functional.cross_entropy(logits, tokens[0, start:], reduction="sum"))
        count += tokens.shape[1] - start
    return total / count
