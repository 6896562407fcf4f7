"""From gpu_count, nodes and topology to pods and ranks.

nodes are pods, one pod per node with all its GPUs, so that NVLink stays inside a pod. The axes of the mesh
have one order: tensor parallel innermost (within a node), then data parallel, pipeline outermost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.resource.aliases import NODES, PER_NODE, PIPELINE, TENSOR, TOTAL

from .facts import first, get


@dataclass(frozen=True)
class Layout:
    """nodes x gpus_per_node = data x tensor x pipeline."""

    nodes: int
    gpus_per_node: int
    data_parallel: int
    tensor_parallel: int
    pipeline_parallel: int
    reasons: tuple[str, ...]

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node


def resolve_layout(spec: Mapping[str, Any]) -> Layout:
    """The layout. Contradictions are refused before (finetune_api.validation.rules), so what is given agrees."""
    total, nodes, per_node = first(spec, TOTAL), first(spec, NODES), first(spec, PER_NODE)
    reasons = [f"{g.path} is {g.value}." for g in (total, nodes, per_node) if g]
    if nodes:
        node_count = int(nodes.value)
    elif total and per_node:
        node_count = total.value // per_node.value
        reasons.append(f"nodes: {total.value} / {per_node.value} = {node_count}.")
    else:
        node_count = 1
        reasons.append("nodes is not given: 1.")
    if per_node:
        width = int(per_node.value)
    elif total:
        width = total.value // node_count
        reasons.append(f"gpus_per_node: {total.value} / {node_count} = {width}.")
    else:
        width = 1
        reasons.append("gpu_count is not given: 1 in each node.")
    tensor, pipeline = int(get(spec, 1, *TENSOR)), int(get(spec, 1, *PIPELINE))
    return Layout(
        nodes=node_count,
        gpus_per_node=width,
        data_parallel=node_count * width // (tensor * pipeline),
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        reasons=tuple(reasons),
    )
