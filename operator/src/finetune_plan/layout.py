"""From gpu_count, nodes and topology to pods and ranks.

nodes are pods, one pod per node with all its GPUs, so that NVLink stays inside a pod. The axes of the mesh
have one order: tensor parallel innermost (within a node), then data parallel, pipeline outermost.
"""

from __future__ import annotations

from dataclasses import dataclass

from .job_settings import LayoutSettings


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


def resolve_layout(given: LayoutSettings) -> Layout:
    """The layout. The rules refuse contradictions first (finetune_api.validation), so what is given agrees."""
    reasons = [f"{s.key} is {s.value}." for s in (given.total, given.nodes, given.per_node) if s.key]
    nodes, node_reason = _nodes(given)
    per_node, width_reason = _gpus_per_node(given, nodes)
    tensor, pipeline = given.tensor.value, given.pipeline.value
    return Layout(
        nodes=nodes,
        gpus_per_node=per_node,
        data_parallel=nodes * per_node // (tensor * pipeline),
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        reasons=(*reasons, *filter(None, (node_reason, width_reason))),
    )


def _nodes(given: LayoutSettings) -> tuple[int, str]:
    """The number of nodes, and a sentence about how it follows from other keys."""
    total, nodes, per_node = given.total.value, given.nodes.value, given.per_node.value
    if nodes is not None:
        return nodes, ""
    if total is None or per_node is None:
        return 1, "nodes is not given: 1."
    return total // per_node, f"nodes: {total} / {per_node} = {total // per_node}."


def _gpus_per_node(given: LayoutSettings, nodes: int) -> tuple[int, str]:
    """Likewise the accelerators of one node."""
    total, per_node = given.total.value, given.per_node.value
    if per_node is not None:
        return per_node, ""
    if total is None:
        return 1, "gpu_count is not given: 1 in each node."
    return total // nodes, f"gpus_per_node: {total} / {nodes} = {total // nodes}."
