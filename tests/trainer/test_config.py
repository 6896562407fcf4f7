"""What the trainer refuses before it loads or starts anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from finetune_api.runtime.protocol import CONFIG_ENV, STALL_ENV, STALL_SECONDS
from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import config
from finetune_trainer.config import NodeInfo
from finetune_trainer.errors import ConfigRefused, Unsupported
from trainer import models

SUPPORTED = (
    "supported are methods fft, lora, qlora; engines single, ddp, fsdp2, hsdp, zero1, zero2, zero3; precisions fp32, "
    "bf16, fp16"
)
TWO = {"mesh__processes_per_node": 2, "mesh__data_parallel": 2}
LORA = {"lora": models.lora()}
NEAREST = {"precision": "bf16", "rounding": "nearest"}
QUANTISED = {"quantisation": {"format": "nf4", "double": True}}


def fine(**changes: Any) -> RunConfig:
    return models.run_config(Path("model"), Path("data"), Path("output"), **changes)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="full finetuning in one process"),
        pytest.param({"method": "lora", **LORA, "precision": "bf16"}, id="LoRA in bf16"),
        pytest.param({"method": "qlora", **LORA, **QUANTISED, "precision": "bf16"}, id="QLoRA in bf16"),
        pytest.param({"method": "lora", **LORA, "merge": True}, id="a merged adapter"),
        pytest.param({"precision": "fp16"}, id="fp16"),
        pytest.param({"engine": "ddp", **TWO}, id="DDP"),
        pytest.param({"engine": "fsdp2", **TWO}, id="FSDP2"),
        pytest.param({"engine": "zero3", **TWO}, id="ZeRO"),
        pytest.param({"engine": "zero3", **TWO, "method": "qlora", **LORA, **QUANTISED}, id="QLoRA with ZeRO"),
        pytest.param({"engine": "zero1", **TWO, "method": "lora", **LORA, **NEAREST}, id="LoRA in bf16 with ZeRO"),
        pytest.param({"engine": "ddp"}, id="DDP over one process"),
    ],
)
def test_accepted(changes: dict[str, Any]) -> None:
    config.check(fine(**changes))


ABSENT_WITH_ZERO: dict[str, dict[str, Any]] = {
    "hyperparameters.optim: adamw_8bit": {"optimizer__name": "adamw_8bit"},
    "hyperparameters.parallelism.rounding: stochastic": {"precision": "bf16"},
    "hyperparameters.parallelism.weights: bf16": {**NEAREST, "weights": "bf16"},
    "training.lora.use_dora: true": {"method": "lora", "lora": models.lora(dora=True)},
    "training.lora.bias: all": {"method": "lora", "lora": models.lora(bias="all")},
    "training.lora.init_lora_weights: olora": {"method": "lora", "lora": models.lora(init="olora")},
    "training.lora.modules_to_save: norm": {"method": "lora", "lora": models.lora(modules_to_save=("norm",))},
}


@pytest.mark.parametrize("what", ABSENT_WITH_ZERO)
def test_what_zero_does_not_have_is_refused_by_its_key(what: str) -> None:
    with pytest.raises(Unsupported, match=f"^{re.escape(what)} is not there with DeepSpeed ZeRO: "):
        config.check(fine(engine="zero2", **TWO, **ABSENT_WITH_ZERO[what]))


OFFLOAD_WITHOUT: dict[str, tuple[dict[str, Any], str]] = {
    "ZeRO": (
        {"engine": "fsdp2", "offload": {"optimizer": True}},
        "offload_optimizer_device: cpu is not there without DeepSpeed ZeRO: the engine of this job is fsdp2",
    ),
    "stage 3": (
        {"engine": "zero2", "offload": {"parameters": True}},
        "offload_param_device: cpu is not there below stage 3 of DeepSpeed ZeRO: ",
    ),
}


@pytest.mark.parametrize("what", OFFLOAD_WITHOUT)
def test_offload_is_refused_without(what: str) -> None:
    changes, said = OFFLOAD_WITHOUT[what]
    with pytest.raises(Unsupported, match=f"^hyperparameters.parallelism.{re.escape(said)}"):
        config.check(fine(**TWO, **changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"engine": "zero2", "precision": "fp16", **TWO}, "fp16 with DeepSpeed ZeRO", id="ZeRO in fp16"),
        pytest.param({"mesh__tensor_parallel": 2}, "does not have tensor_parallel 2", id="tensor parallelism"),
        pytest.param({"mesh__pipeline_parallel": 4}, "does not have pipeline_parallel 4", id="pipeline parallelism"),
        pytest.param(
            {"mesh__tensor_parallel": 2, "mesh__pipeline_parallel": 2},
            "does not have tensor_parallel 2 and pipeline_parallel 2",
            id="everything that is missing is named at once",
        ),
        pytest.param(
            {"engine": "zero2", "mesh__pipeline_parallel": 2},
            "ZeRO with tensor or pipeline parallelism cannot work",
            id="ZeRO with pipeline parallelism",
        ),
    ],
)
def test_unsupported_says_what_is_supported(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsupported) as refused:
        config.check(fine(**changes))
    assert reason in str(refused.value)
    assert SUPPORTED in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param(
            {"mesh__processes_per_node": 2},
            "data 1 x tensor 1 x pipeline 1 is 1, but nodes 1 x processes_per_node 2 is 2",
            id="the mesh does not fill the processes",
        ),
        pytest.param(
            TWO, "engine single runs one process, not 2; set engine ddp or fsdp2", id="two single processes"
        ),
        pytest.param(
            {"engine": "hsdp", **TWO},
            "hsdp shards inside a node and replicates across nodes",
            id="hybrid on one node",
        ),
        pytest.param({"weights": "bf16"}, "weights bf16 needs method fft, precision bf16", id="bf16 only, in fp32"),
        pytest.param({"method": "lora"}, "method lora and lora None contradict", id="LoRA without its settings"),
        pytest.param(
            {**LORA, "method": "qlora"},
            "method qlora and quantisation None contradict",
            id="QLoRA without its format",
        ),
        pytest.param(QUANTISED, "method fft and quantisation format=", id="full finetuning of a quantised base"),
        pytest.param(LORA, "method fft and lora", id="LoRA settings without LoRA"),
        pytest.param({"merge": True}, "merge is true, but method fft trains no adapter", id="nothing to merge"),
        pytest.param(
            {"validation": {"every_steps": 0, "keep_best": False, "metric": "val.loss", "greater_is_better": False}},
            "validation is set but data.validation is not; set",
            id="validation of no rows",
        ),
        pytest.param(
            {
                "data__validation": "rows",
                "validation": {
                    "every_steps": 0,
                    "keep_best": False,
                    "metric": "val.loss",
                    "greater_is_better": True,
                },
            },
            "validation.greater_is_better is true, but a loss is better when it is smaller; set false",
            id="a loss that is better when larger",
        ),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigRefused, match=reason):
        config.check(fine(**changes))


def test_a_document_is_refused_with_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(fine().model_dump_json().replace('"seed":7', '"seed":-7,"sead":7'))
    with pytest.raises(ConfigRefused) as refused:
        config.load({CONFIG_ENV: str(path)})
    assert f"{path}: seed: Input should be greater than or equal to 0; sead: Extra inputs" in str(refused.value)


@pytest.mark.parametrize(
    ("path", "legal", "other"),
    [
        ("version", "finetune.dev/run/v1", "finetune.dev/run/v2"),
        ("optimizer.name", "adamw", "lion"),
        ("validation.metric", "val.loss", "bleu"),
    ],
)
def test_a_value_without_alternative_is_refused_by_name(tmp_path: Path, path: str, legal: str, other: str) -> None:
    validation = {"every_steps": 0, "keep_best": False, "metric": "val.loss", "greater_is_better": False}
    document = fine(data__validation="rows", validation=validation).model_dump_json()
    (tmp_path / "run.json").write_text(document.replace(f'"{legal}"', f'"{other}"'))
    with pytest.raises(ConfigRefused, match=f"{path}: Input should be '{legal}'"):
        config.load({CONFIG_ENV: str(tmp_path / "run.json")})


def test_a_missing_document_is_named() -> None:
    with pytest.raises(ConfigRefused, match="FINETUNE_RUN_CONFIG is not set"):
        config.load({})
    with pytest.raises(ConfigRefused, match=r"names nowhere\.json, which cannot be read: No such file"):
        config.load({CONFIG_ENV: "nowhere.json"})


PET = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "job-worker-0", "PET_MASTER_PORT": "23456"}
NODES = {"engine": "ddp", "mesh__nodes": 2, "mesh__data_parallel": 2}


def test_the_rank_of_the_node() -> None:
    assert config.node({}, fine()) == NodeInfo(0, 1)
    assert config.node(PET, fine(**NODES)) == NodeInfo(1, 2, "job-worker-0", 23456)
    assert config.node({"PET_NPROC_PER_NODE": "1"}, fine()) == config.node({"PET_NPROC_PER_NODE": "auto"}, fine())


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        pytest.param({}, "mesh.nodes is 2, but PET_NNODES is 1", id="no variables at all"),
        pytest.param(PET | {"PET_NNODES": "3"}, "mesh.nodes is 2, but PET_NNODES is 3", id="another number of nodes"),
        pytest.param(PET | {"PET_NODE_RANK": "2"}, "PET_NODE_RANK is 2, but there are 2 nodes", id="a rank too high"),
        pytest.param(
            PET | {"PET_NODE_RANK": "one"},
            "PET_NODE_RANK is 'one'; it must be an integer",
            id="a rank that is no number",
        ),
        pytest.param(
            PET | {"PET_NPROC_PER_NODE": "4"},
            "mesh.processes_per_node is 1, but PET_NPROC_PER_NODE is 4",
            id="another number of ranks",
        ),
        pytest.param(
            PET | {"PET_MASTER_ADDR": ""}, "need PET_MASTER_ADDR and PET_MASTER_PORT", id="no address of rank 0"
        ),
    ],
)
def test_nodes_that_do_not_fit_the_mesh_are_refused(variables: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigRefused, match=reason):
        config.node(variables, fine(**NODES))


@pytest.mark.parametrize(("text", "seconds"), [(None, STALL_SECONDS), ("0", 0), ("1.5", 1.5)])
def test_the_seconds_of_a_stall(text: str | None, seconds: float) -> None:
    assert config.stall_seconds({} if text is None else {STALL_ENV: text}) == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan", ""])
def test_seconds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigRefused, match=f"FINETUNE_STALL_SECONDS is '{text}'; it must be a number of seconds"):
        config.stall_seconds({STALL_ENV: text})
