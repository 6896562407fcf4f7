"""LoRA's forward pass beside PEFT's: what each keeps of an early update in bf16, and what a step costs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from enum import StrEnum

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn

from bench.figures import Figure
from finetune_api.runtime.choices import Method, Precision
from finetune_trainer import loop, lora_forward
from trainer.lora_update import kept

from . import shapes
from .shapes import LLAMA_1B, SMOL, Work

MATRICES = ((2048, 8192), (8192, 2048), (4096, 4096), (14_336, 4096))
"""Inputs and outputs of layers."""
ROWS = 8192
WORKS = (
    Work(SMOL, Method.LORA, rows=16),
    Work(LLAMA_1B, Method.LORA, rows=6),
    Work(LLAMA_1B, Method.LORA, rows=6, dora=True),
    Work(LLAMA_1B, Method.QLORA, rows=6),
)
ROUNDS, WARM_UP, TIMED = 2, 3, 6


class Forward(StrEnum):
    """Whose forward pass it is, and the format of the adapters in it."""

    OURS = "ours"
    PEFT = "PEFT's"
    """With adapters in fp32, which get a copy of each input in fp32."""
    PEFT_IN_BF16 = "PEFT's on bf16 copies"


def figures(device: torch.device) -> Iterator[Figure]:
    for inputs, outputs in MATRICES:
        layer = _layer(inputs, outputs, device)
        x = torch.randn(ROWS, inputs, device=device, dtype=torch.bfloat16)
        name = f"{inputs} x {outputs}: kept of an early update"
        yield Figure(name, kept(layer, x), "", least=0.99, most=1.01)
        layer.__class__ = Linear
        yield Figure(f"{name}, by PEFT", kept(layer, x), "")
    for work in WORKS:
        seconds: dict[Forward, list[float]] = {forward: [] for forward in Forward}
        for _ in range(ROUNDS):
            for forward in Forward:
                seconds[forward] += _step_seconds(work, forward, device)
        medians = {forward: statistics.median(found) for forward, found in seconds.items()}
        for forward, median in medians.items():
            yield Figure(f"{work}, {forward}", work.rows * work.length / median, "tokens/s")
        share = medians[Forward.OURS] / medians[Forward.PEFT]
        yield Figure(f"{work}: ours, of a step of {Forward.PEFT}", share, "", most=1.0)


def _layer(inputs: int, outputs: int, device: torch.device) -> nn.Module:
    torch.manual_seed(shapes.SEED)
    settings = LoraConfig(r=16, lora_alpha=32, target_modules=["0"])
    lora_forward.use(settings, lora_forward.LoraLinear)
    with device:
        base = nn.Sequential(nn.Linear(inputs, outputs, bias=False))
    model = get_peft_model(base, settings)
    layer: nn.Module = model.get_submodule("base_model.model.0")
    nn.init.normal_(layer.get_submodule("lora_B.default").weight)  # type: ignore[arg-type]
    return layer.to(device, torch.bfloat16)


def _step_seconds(work: Work, forward: Forward, device: torch.device) -> list[float]:
    steps = WARM_UP + TIMED
    config = work.config(device, schedule__max_steps=steps, schedule__epochs=steps)
    built = shapes.random_model(work.shape, config, device, theirs=forward is not Forward.OURS)
    if forward is Forward.PEFT:  # the base stays in bf16, and no engine makes copies of the adapters
        config = config.model_copy(update={"precision": Precision.FP32})
    data = shapes.full_rows(work.rows, work.length, work.shape.vocabulary)
    seconds: list[float] = []
    loop.fit(shapes.train_state(config, built, data, device), 0, [lambda result: seconds.append(result.seconds)])
    return seconds[WARM_UP:]
