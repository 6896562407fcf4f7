"""What the trainer of this version can do: engine x method, and why some cells of that table stay empty.

Pure data and one question. The trainer asks before anything is loaded, the plan and the CLI before anything
is sent; the documentation's table is made from the same lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .choices import Engine, Method, Precision
from .zero import STAGES

METHODS = (Method.FFT, Method.LORA, Method.QLORA)
ENGINES = (Engine.SINGLE, Engine.DDP, Engine.FSDP2, Engine.HSDP, *STAGES)
PRECISIONS = (Precision.FP32, Precision.BF16, Precision.FP16)


@dataclass(frozen=True)
class Combination:
    """The choices that decide which code runs."""

    method: Method
    engine: Engine
    precision: Precision
    tensor_parallel: int = 1
    pipeline_parallel: int = 1


@dataclass(frozen=True)
class Impossible:
    """A combination that cannot work in any version."""

    name: str
    reason: str
    applies: Callable[[Combination], bool]


IMPOSSIBLE = (
    Impossible(
        "ZeRO with tensor or pipeline parallelism",
        "ZeRO owns the gradients and the optimizer state that these would cut differently",
        lambda c: c.engine in STAGES and (c.tensor_parallel > 1 or c.pipeline_parallel > 1),
    ),
)


def supported() -> str:
    """What can be chosen, as the end of a sentence."""
    return (
        f"supported are methods {', '.join(METHODS)}; engines {', '.join(ENGINES)}; "
        f"precisions {', '.join(PRECISIONS)}; tensor_parallel 1; pipeline_parallel 1"
    )


def refuse(asked: Combination) -> str | None:
    """Why this version cannot run `asked`, as a sentence that names what it can; None if it can."""
    for cell in IMPOSSIBLE:
        if cell.applies(asked):
            return f"{cell.name} cannot work: {cell.reason}; {supported()}"
    checks = (
        (asked.method in METHODS, f"method {asked.method}"),
        (asked.engine in ENGINES, f"engine {asked.engine}"),
        (asked.precision in PRECISIONS, f"precision {asked.precision}"),
        (asked.engine not in STAGES or asked.precision is not Precision.FP16, "fp16 with DeepSpeed ZeRO"),
        (asked.tensor_parallel == 1, f"tensor_parallel {asked.tensor_parallel}"),
        (asked.pipeline_parallel == 1, f"pipeline_parallel {asked.pipeline_parallel}"),
    )
    missing = [name for fine, name in checks if not fine]
    return f"this version does not have {' and '.join(missing)}; {supported()}" if missing else None
