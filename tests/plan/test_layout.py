"""gpu_count, nodes, gpus_per_node and the topology become pods and ranks."""

from __future__ import annotations

import pytest

from builders import Json, resource
from finetune_plan.job_settings import read
from finetune_plan.layout import resolve_layout

CASES: dict[str, tuple[Json, tuple[int, int, int, int, int]]] = {
    "nothing given is one GPU in one node": ({}, (1, 1, 1, 1, 1)),
    "gpu_count alone is one node": ({"compute.gpu_count": 8}, (1, 8, 8, 1, 1)),
    "gpus_per_node is gpu_count / nodes": ({"compute.gpu_count": 8, "compute.nodes": 2}, (2, 4, 8, 1, 1)),
    "nodes is gpu_count / gpus_per_node": ({"compute.gpu_count": 16, "compute.gpus_per_node": 8}, (2, 8, 16, 1, 1)),
    "gpu_count is nodes x gpus_per_node": ({"compute.nodes": 3, "compute.gpus_per_node": 2}, (3, 2, 6, 1, 1)),
    "the topology of data says enough": (
        {"data.topology": {"total_gpus": 8, "nodes": 2, "container_count": 8}}, (2, 4, 8, 1, 1)),
    "a topology under parallelism is read": (
        {"hyperparameters.parallelism.topology": {"nodes": 2, "gpus_per_node": 8}}, (2, 8, 16, 1, 1)),
    "world_size is gpu_count by another name": ({"hyperparameters.world_size": 4}, (1, 4, 4, 1, 1)),
    "tensor and pipeline take their share": (
        {"compute.gpu_count": 8, "hyperparameters.parallelism.tensor_parallel_size": 2,
         "hyperparameters.parallelism.pipeline_parallel_size": 2}, (1, 8, 2, 2, 2)),
    "tensor_parallel of the topology counts": (
        {"compute.gpu_count": 8, "data.topology.tensor_parallel": 4}, (1, 8, 2, 4, 1)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_layout(case: str) -> None:
    changes, expected = CASES[case]
    mesh = resolve_layout(read(resource({"compute.gpu_count": None} | changes)).layout)
    found = (mesh.nodes, mesh.gpus_per_node, mesh.data_parallel, mesh.tensor_parallel, mesh.pipeline_parallel)
    assert found == expected


def test_the_reasons_name_what_was_given_and_what_was_assumed() -> None:
    layout = resolve_layout(read(resource({"compute.gpu_count": 8, "compute.nodes": 2})).layout)
    assert layout.reasons == ("compute.gpu_count is 8.", "compute.nodes is 2.", "gpus_per_node: 8 / 2 = 4.")
