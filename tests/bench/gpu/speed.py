"""Tokens per second and memory of real shapes, ours and those of transformers' own Trainer, on the same rows."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from bench.figures import Figure
from finetune_api.runtime.choices import Method
from finetune_trainer import loop
from finetune_trainer.loop import StepResult
from finetune_trainer.rows import Rows

from . import shapes
from .shapes import LLAMA_1B, LLAMA_3B, LLAMA_8B, SMOL, Work

WARM_UP = 3
"""Steps that are not timed: kernels are loaded, and the allocator finds its sizes."""
TIMED = 8
WORKS = (
    Work(SMOL, Method.FFT, rows=16),
    Work(SMOL, Method.LORA, rows=16),
    Work(LLAMA_1B, Method.FFT, rows=6),
    Work(LLAMA_1B, Method.LORA, rows=6),
    Work(LLAMA_3B, Method.FFT, rows=4, checkpointing=True),
    Work(LLAMA_3B, Method.LORA, rows=4),
    Work(LLAMA_8B, Method.LORA, rows=4, checkpointing=True),
    Work(LLAMA_1B, Method.LORA, rows=6, dora=True),
    Work(LLAMA_1B, Method.QLORA, rows=6),
    Work(LLAMA_8B, Method.QLORA, rows=4, checkpointing=True),
)


def figures(device: torch.device) -> Iterator[Figure]:
    peak = matrix_rate(device)
    yield Figure("matrix product in bf16, 8192 x 8192 x 8192", peak / 1e12, "TFLOP/s")
    for work in WORKS:
        for name, run in {"": ours, "transformers.Trainer: ": theirs}.items():
            try:
                seconds, memory = _measured(run, work, device)
            except torch.OutOfMemoryError as error:
                print(f"{name}{work}: does not fit: {str(error).splitlines()[0]}", flush=True)
                continue
            tokens = work.rows * work.length
            rate = flops(work) / seconds / peak
            yield Figure(f"{name}{work}", tokens / seconds, "tokens/s")
            yield Figure(f"{name}{work}: matrix products, of the above", 100 * rate, "%")
            yield Figure(f"{name}{work}: memory at its peak", memory / 2**30, "GiB")


def flops(work: Work) -> float:
    """Of the matrix products that a step needs; recomputation is not among them, and attention is causal.

    Two for each weight and token forwards, four backwards, of which frozen weights save two.
    """
    tokens = work.rows * work.length
    passes = 3 if work.method is Method.FFT else 2
    attention = 2 * tokens * work.length * work.shape.hidden * work.shape.layers * 3
    head = 0 if work.shape.tied else work.shape.vocabulary * work.shape.hidden
    return 2 * passes * tokens * (work.shape.parameters - head) + attention


def ours(work: Work, device: torch.device) -> list[float]:
    """Seconds of each step."""
    steps = WARM_UP + TIMED
    config = work.config(device, schedule__max_steps=steps, schedule__epochs=steps)
    data = shapes.full_rows(work.rows, work.length, work.shape.vocabulary)
    state = shapes.train_state(config, shapes.random_model(work.shape, config, device), data, device)
    seconds: list[float] = []

    def note(result: StepResult) -> None:
        seconds.append(result.seconds)

    loop.fit(state, 0, [note])
    return seconds


def theirs(work: Work, device: torch.device) -> list[float]:
    """Seconds of each step of transformers.Trainer: autocast, fused AdamW and the same recomputation."""
    model = shapes.random_model(work.shape, work.config(device), device, prepared=False, theirs=True)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, bf16=True, optim="adamw_torch_fused", max_steps=WARM_UP + TIMED,
            per_device_train_batch_size=work.rows, gradient_checkpointing=work.checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False}, max_grad_norm=1.0, learning_rate=1e-3,
            save_strategy="no", report_to=[], disable_tqdm=True, logging_steps=10_000,
        )  # fmt: skip
        rows = _examples(shapes.full_rows(work.rows, work.length, work.shape.vocabulary))
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[clock]).train()
    return clock.seconds


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        torch.cuda.synchronize()
        self._began = time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        torch.cuda.synchronize()
        self.seconds.append(time.monotonic() - self._began)


def _examples(rows: Rows) -> list[dict[str, Tensor]]:
    """As the product sees them: the last token of a row is only predicted."""
    tokens = [torch.from_numpy(rows.row(i)[0].astype("int64")) for i in range(len(rows))]
    return [{"input_ids": row[:-1], "labels": row[:-1]} for row in tokens]


def _measured(
    run: Callable[[Work, torch.device], list[float]], work: Work, device: torch.device
) -> tuple[float, int]:
    """Median of the timed steps in seconds, and bytes at the peak."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seconds = run(work, device)
    return statistics.median(seconds[WARM_UP:]), torch.cuda.max_memory_allocated()


def matrix_rate(device: torch.device, size: int = 8192, repeats: int = 20) -> float:
    """FLOP/s of a bf16 product of random matrices, after as many that are not timed."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(2):
        torch.cuda.synchronize()
        began = time.monotonic()
        for _ in range(repeats):
            a @ b
        torch.cuda.synchronize()
        times.append(time.monotonic() - began)
    return repeats * 2 * size**3 / times[-1]
