"""The run configuration and the rank of this node, read once and validated early.

Called by node.py before any process is started and before anything is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune_api.runtime import capabilities, zero
from finetune_api.runtime.choices import Engine, Method, Precision, Rounding, WeightFormat
from finetune_api.runtime.protocol import (
    CONFIG_ENV,
    MASTER_ADDR_ENV,
    MASTER_PORT_ENV,
    NODE_RANK_ENV,
    NODES_ENV,
    PROCESSES_ENV,
    STALL_ENV,
    STALL_SECONDS,
)
from finetune_api.runtime.run_config import RunConfig

from .errors import ConfigRefused, Unsupported


@dataclass(frozen=True)
class NodeInfo:
    """This pod (or local replica) of the run."""

    rank: int
    count: int
    master_addr: str = ""
    """Host of rank 0; empty on a single node, which needs no fixed port."""
    master_port: int = 0


def load(environment: Mapping[str, str]) -> RunConfig:
    """The configuration that FINETUNE_RUN_CONFIG names. Raises ConfigRefused or Unsupported."""
    path = environment.get(CONFIG_ENV)
    if not path:
        raise ConfigRefused(f"{CONFIG_ENV} is not set; set it to the path of the run configuration")
    try:
        config = RunConfig.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise ConfigRefused(f"{CONFIG_ENV} names {path}, which cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigRefused(f"{path}: {_problems(error)}") from error
    check(config)
    return config


def check(config: RunConfig) -> None:
    """Raises Unsupported or ConfigRefused for a configuration that cannot work."""
    reason = capabilities.refuse(
        capabilities.Combination(
            config.method,
            config.engine,
            config.precision,
            config.mesh.tensor_parallel,
            config.mesh.pipeline_parallel,
        )
    )
    if reason:
        raise Unsupported(reason)
    for each in zero.absent(config):
        raise Unsupported(f"{each.key}: {each.value} is not there {each.where}: {each.reason}; {each.instead}")
    for problem in _contradictions(config):
        raise ConfigRefused(problem)


def _contradictions(config: RunConfig) -> list[str]:
    mesh = config.mesh
    product = mesh.data_parallel * mesh.tensor_parallel * mesh.pipeline_parallel
    found = []
    if product != mesh.world_size:
        found.append(
            f"mesh: data {mesh.data_parallel} x tensor {mesh.tensor_parallel} x pipeline "
            f"{mesh.pipeline_parallel} is {product}, but nodes {mesh.nodes} x processes_per_node "
            f"{mesh.processes_per_node} is {mesh.world_size}; make the products equal"
        )
    if config.engine is Engine.SINGLE and mesh.world_size > 1:
        found.append(f"engine single runs one process, not {mesh.world_size}; set engine ddp or fsdp2")
    if config.engine is Engine.HSDP and 1 in (mesh.nodes, mesh.processes_per_node):
        found.append(
            f"engine hsdp shards inside a node and replicates across nodes, not with nodes {mesh.nodes} and "
            f"processes_per_node {mesh.processes_per_node}; set engine fsdp2 or ddp"
        )
    found += _contradictions_of_method(config)
    if config.weights is WeightFormat.BF16 and not _can_keep_bf16(config):
        found.append(
            f"weights bf16 needs method fft, precision bf16 and rounding stochastic, not {config.method}, "
            f"{config.precision} and {config.rounding}; set weights fp32"
        )
    if config.validation is not None and config.data.validation is None:
        found.append("validation is set but data.validation is not; set data.validation")
    if config.validation is not None and config.validation.greater_is_better:
        found.append("validation.greater_is_better is true, but a loss is better when it is smaller; set false")
    return found


def _contradictions_of_method(config: RunConfig) -> Iterator[str]:
    parts = (("lora", config.lora, config.method is not Method.FFT),
             ("quantisation", config.quantisation, config.method is Method.QLORA))  # fmt: skip
    for name, part, wanted in parts:
        if (part is not None) != wanted:
            yield f"method {config.method} and {name} {part} contradict each other"
    if config.merge and config.method is Method.FFT:
        yield "merge is true, but method fft trains no adapter that could be merged; set merge false"


def _can_keep_bf16(config: RunConfig) -> bool:
    """Adapters are small, and rounded to the nearest most updates would be lost."""
    given = (config.method, config.precision, config.rounding)
    return given == (Method.FFT, Precision.BF16, Rounding.STOCHASTIC)


def node(environment: Mapping[str, str], config: RunConfig) -> NodeInfo:
    """The node that the PET_* variables describe; without them, the only one."""
    _require_processes(environment, config.mesh.processes_per_node)
    if NODES_ENV not in environment:
        found = NodeInfo(0, 1)
    else:
        addr = environment.get(MASTER_ADDR_ENV, "")
        found = NodeInfo(
            _number(environment, NODE_RANK_ENV, "0"), _number(environment, NODES_ENV, "1"), addr,
            _number(environment, MASTER_PORT_ENV, "0"),
        )  # fmt: skip
    if found.count != config.mesh.nodes:
        raise ConfigRefused(f"mesh.nodes is {config.mesh.nodes}, but {NODES_ENV} is {found.count}")
    if not 0 <= found.rank < found.count:
        raise ConfigRefused(f"{NODE_RANK_ENV} is {found.rank}, but there are {found.count} nodes")
    if found.count > 1 and not (found.master_addr and found.master_port):
        raise ConfigRefused(f"{found.count} nodes need {MASTER_ADDR_ENV} and {MASTER_PORT_ENV}")
    return found


def stall_seconds(environment: Mapping[str, str]) -> float:
    """Seconds without progress that are never a stall; 0: none is."""
    text = environment.get(STALL_ENV, str(STALL_SECONDS))
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < math.inf:
        raise ConfigRefused(f"{STALL_ENV} is {text!r}; it must be a number of seconds, or 0")
    return found


def _require_processes(environment: Mapping[str, str], expected: int) -> None:
    """Words such as `auto` leave the number to the trainer."""
    given = environment.get(PROCESSES_ENV, "")
    if given.isdecimal() and int(given) != expected:
        raise ConfigRefused(f"mesh.processes_per_node is {expected}, but {PROCESSES_ENV} is {given}")


def _number(environment: Mapping[str, str], name: str, default: str) -> int:
    text = environment.get(name, default)
    try:
        return int(text)
    except ValueError:
        raise ConfigRefused(f"{name} is {text!r}; it must be an integer") from None


def _problems(error: ValidationError) -> str:
    """Every problem of the document: path and reason."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'the document'}: {problem['msg']}"
        for problem in error.errors(include_url=False)
    )
