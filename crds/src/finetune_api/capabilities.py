"""What the trainer of this version can do, as one table, and why it cannot do the rest.

The plan asks before pods exist, the trainer asks again before weights load. A cell of the table moves from
PLANNED to SUPPORTED when its parity test exists, and nowhere else does anything change.
"""

from __future__ import annotations

from enum import Enum, auto

from .run import Engine, Method, Precision, RunConfig


class Cell(Enum):
    SUPPORTED = auto()
    PLANNED = auto()
    IMPOSSIBLE = auto()


_DATA_PARALLEL = (Engine.SINGLE, Engine.DDP, Engine.FSDP2)
_ZERO = (Engine.ZERO1, Engine.ZERO2, Engine.ZERO3)

TABLE: dict[tuple[Engine, Method], Cell] = (
    {(engine, method): Cell.SUPPORTED for engine in _DATA_PARALLEL for method in (Method.FFT, Method.LORA)}
    | {(engine, Method.QLORA): Cell.PLANNED for engine in _DATA_PARALLEL}
    | {(engine, method): Cell.PLANNED for engine in _ZERO for method in Method}
    | {(Engine.ZERO3, Method.QLORA): Cell.IMPOSSIBLE}
)
IMPOSSIBLE_BECAUSE = {
    (Engine.ZERO3, Method.QLORA): "ZeRO-3 does not shard a quantised base: use ZeRO-2, or FSDP.",
}
PRECISIONS = (Precision.FP32, Precision.BF16)


def refusal(config: RunConfig) -> str | None:
    """The sentence that refuses a run of this configuration, or None if the trainer can do it."""
    engine, method, mesh = config.engine, config.method, config.mesh
    if TABLE[engine, method] is Cell.IMPOSSIBLE:
        return IMPOSSIBLE_BECAUSE[engine, method]
    if engine in _ZERO and mesh.tensor_parallel * mesh.pipeline_parallel > 1:
        return "DeepSpeed ZeRO does not combine with tensor or pipeline parallelism: use FSDP."
    if TABLE[engine, method] is Cell.PLANNED:
        return f"{method} with {engine} is not supported by this version. {supported()}"
    if mesh.tensor_parallel > 1 or mesh.pipeline_parallel > 1:
        return f"Tensor and pipeline parallelism are not supported by this version. {supported()}"
    if config.precision not in PRECISIONS:
        return f"Computing in {config.precision} is not supported by this version. {supported()}"
    return None


def supported() -> str:
    """The sentence that lists what can be chosen."""
    methods = sorted({m.value for (_, m), cell in TABLE.items() if cell is Cell.SUPPORTED})
    engines = sorted({e.value for (e, _), cell in TABLE.items() if cell is Cell.SUPPORTED})
    precisions = sorted(p.value for p in PRECISIONS)
    return (
        f"Supported are {', '.join(methods)} with {', '.join(engines)} in {', '.join(precisions)}, "
        "with tensor_parallel_size and pipeline_parallel_size 1."
    )
