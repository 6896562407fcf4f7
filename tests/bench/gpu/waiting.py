"""What a step makes the CPU wait for, what its time goes into, and what the cast of the weights costs."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.figures import Figure
from finetune_api.runtime.choices import Engine, Method, OptimizerName
from finetune_trainer import loop, rounding
from finetune_trainer.loop import StepResult

from . import shapes
from .shapes import LLAMA_1B, SHARDS, SMOL, Work

STEPS = 4
ASLEEP = 200_000_000
"""Cycles of the device, a tenth of a second: longer than the host takes to start what is measured."""
KERNELS = 12
"""Lines of the summary."""


def figures(device: torch.device) -> Iterator[Figure]:
    with shapes.nccl(device):
        kinds = (Engine.SINGLE, Engine.FSDP2) if SHARDS else (Engine.SINGLE,)
        for engine, method, optimizer in product(kinds, (Method.FFT, Method.LORA), OptimizerName):
            found = syncs(Work(SMOL, method, rows=4), engine, optimizer, device)
            for place, count in found.items():
                print(f"{engine} {method} {optimizer}: waits {count} times in {STEPS} steps: {place}", flush=True)
            yield Figure(f"{engine} {method} {optimizer}: waits a step", found.total() / STEPS, "", least=1, most=1)
    yield from costs(Work(LLAMA_1B, Method.FFT, rows=6), device)


def syncs(work: Work, engine: Engine, optimizer: OptimizerName, device: torch.device) -> Counter[str]:
    """Where the steps after the first two wait for the device, and how often."""
    config = work.config(
        device, engine=engine, optimizer__name=optimizer, schedule__max_steps=2 + STEPS, schedule__epochs=9,
        batch={"per_device": work.rows // 2, "accumulation": 2},
    )  # fmt: skip
    data = shapes.full_rows(work.rows, work.length, work.shape.vocabulary)
    state = shapes.train_state(config, shapes.random_model(work.shape, config, device), data, device)

    def begin(result: StepResult) -> None:
        if result.step == 2:
            torch.cuda.set_sync_debug_mode("warn")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loop.fit(state, 0, [begin])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = (each for each in caught if "called a synchronizing" in str(each.message))
    return Counter(f"{Path(each.filename).name}:{each.lineno}" for each in waits)


def costs(work: Work, device: torch.device) -> Iterator[Figure]:
    """One step under the profiler, and the cast of all weights by itself."""
    config = work.config(device, schedule__max_steps=5, schedule__epochs=5)
    data = shapes.full_rows(work.rows, work.length, work.shape.vocabulary)
    state = shapes.train_state(config, shapes.random_model(work.shape, config, device), data, device)
    seconds: list[float] = []
    loop.fit(state, 0, [lambda result: seconds.append(result.seconds)])
    step = seconds[-1] * 1e3
    weights: Any = state.engine._weights  # type: ignore[attr-defined]
    cast = _milliseconds(lambda: weights.publish(9))
    others = _differences(weights, rounding.of(config, torch.device("cpu")), step=9)
    nearest = _milliseconds(lambda: _cast_to_nearest(weights))
    yield Figure(f"{work}: a step", step, "ms")
    yield Figure(f"{work}: the stochastic cast, of a step", 100 * cast / step, "%", most=2)
    yield Figure(f"{work}: elements that the CPU casts to another number", others, "", most=0)
    yield Figure(f"{work}: a cast to the nearest, of a step", 100 * nearest / step, "%")
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        loop.fit(state, 4, [lambda result: seconds.append(result.seconds)])
    yield from _summary(profiled, seconds[-1])


def _summary(profiled: Any, seconds: float) -> Iterator[Figure]:
    kernels = [
        event for event in profiled.key_averages() if event.self_device_time_total and not event.cpu_time_total
    ]
    busy = sum(event.self_device_time_total for event in kernels) / 1e6
    yield Figure("under the profiler: kernels, of the time of the step", 100 * busy / seconds, "%")
    for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:KERNELS]:
        share = event.self_device_time_total / 1e4 / busy
        print(f"  {share:5.1f} %  {event.count:5} x  {event.key[:90]}", flush=True)


def _differences(weights: Any, on_cpu: rounding.WeightRounding, step: int) -> int:
    """Elements of the two smallest and the largest weight that differ from the CPU's cast."""
    found = 0
    sizes = sorted(weights._separate, key=lambda name: weights._separate[name].numel())
    for name in (*sizes[:2], sizes[-1]):
        cast = weights._parameters[name].detach().cpu()
        expected = torch.empty_like(cast)
        on_cpu.round(weights._separate[name].cpu(), expected, name=name, start=0, step=step)
        found += int((cast != expected).sum())
    return found


def _cast_to_nearest(weights: Any) -> None:
    for name, weight in weights._separate.items():
        weights._parameters[name].detach().copy_(weight)


def _milliseconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Of the device alone: in a step, too, the work waits in its queue and not for the host to start it."""
    begin, end = (_event() for _ in range(2))
    work()
    torch._C._cuda_sleep(ASLEEP)
    begin.record()
    for _ in range(repeats):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / repeats


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
