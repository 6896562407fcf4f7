"""DeepSpeed dictionaries in files of their own, written after those that axolotl ships: jobs name them and train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders import resource
from cli.calls import finetune
from finetune_api.resource.names import RUN_CONFIG_ANNOTATION
from finetune_api.runtime.report import ProgressRecord
from finetune_cli import job_file, planning
from finetune_cli.overrides import Overrides
from trainer import models, trainer_work
from trainer.ranks import run_ranks, values

FOLDER = Path(__file__).parent / "deepspeed"
OFFLOADS = {
    "zero2_offload": {"optimizer": True, "parameters": False},
    "zero3_offload_params": {"optimizer": False, "parameters": True},
    "zero3_offload_all": {"optimizer": True, "parameters": True},
}
KEY = "hyperparameters.parallelism.deepspeed_config"
STEPS = 3
TRAINED = ("zero1", "zero1_compile", "zero2", "zero3", "zero3_bf16", *OFFLOADS)


def job(folder: Path, dictionary: Any, **changes: Any) -> Path:
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(resource({"compute.gpu_count": 2, KEY: dictionary, **changes})))
    return file


@pytest.mark.parametrize("name", TRAINED)
def test_a_job_with_a_usual_file_validates_renders_and_trains(tmp_path: Path, name: str) -> None:
    file = job(tmp_path, str(FOLDER / f"{name}.json"))
    assert json.loads(finetune("validate", file, "-o", "json").stdout)["errors"] == []
    rendered = finetune("render", file)
    [run] = [each for each in yaml.safe_load_all(rendered.stdout) if each and each["kind"] == "PyTorchJob"]
    [replica] = run["spec"]["pytorchReplicaSpecs"].values()
    config = json.loads(replica["template"]["metadata"]["annotations"][RUN_CONFIG_ANNOTATION])
    engine = name.partition("_")[0]
    assert (config["engine"], config["precision"], config["rounding"]) == (engine, "bf16", "nearest")
    assert config.get("offload") == OFFLOADS.get(name)

    model = models.model_folder(tmp_path / "model", layers=2)
    given = Overrides(
        dataset=str(models.dataset(tmp_path / "rows.jsonl", 12)), model=str(model), output=str(tmp_path / "output"),
        assignments=("compute.gpu_type=CPU", f"hyperparameters.total_steps={STEPS}"),
    )  # fmt: skip
    here = planning.accept(job_file.read(str(file)), given, cluster=False).resolution.run_config
    values(run_ranks(2, trainer_work.run_on_ranks, here))
    records = [each for each in trainer_work.records(tmp_path / "output") if isinstance(each, ProgressRecord)]
    assert len(records) == STEPS
    assert all(each.loss is not None and each.loss < 10 for each in records)


@pytest.mark.parametrize("key", ["offload_optimizer", "offload_param"])
def test_a_file_that_moves_state_to_a_disk_is_refused_by_its_own_key(tmp_path: Path, key: str) -> None:
    dictionary = json.loads((FOLDER / "zero3_offload_all.json").read_text())
    dictionary["zero_optimization"][key] |= {"device": "nvme", "nvme_path": "/tmp"}
    said = finetune("validate", job(tmp_path, dictionary))
    assert said.exit_code == 2
    assert f"spec.{KEY}.zero_optimization.{key}.device: 'nvme' is not one of 'none' or 'cpu'." in said.output


def test_a_file_of_this_machine_is_noted_for_who_would_apply_the_job_itself(tmp_path: Path) -> None:
    said = json.loads(finetune("validate", job(tmp_path, str(FOLDER / "zero2.json")), "-o", "json").stdout)
    assert [note["reason"] for note in said["notes"] if "kubectl apply" in note["sentence"]] == ["LocalFile"]


UNREADABLE: dict[str, tuple[str | None, str]] = {
    "no such file": (None, "cannot be read: No such file or directory."),
    "no JSON": ("{stage: 3}", "is no DeepSpeed dictionary: Expecting property name"),
    "no map": ("[3]", "is no DeepSpeed dictionary: it is [3] and no map"),
    "a name": ('"zero3.json"', "it is 'zero3.json' and no map"),
    "nothing": ("null", "it is None and no map"),
    "a name twice": ('{"a": 1, "a": 2}', "'a' is there twice"),
    "deep maps": ('{"a":' * 500 + "1" + "}" * 500, "its maps are nested deeper than 100"),
    "more bytes than a dictionary has": (f'{{"a": "{"x" * 2**20}"}}', "it has more than 1,048,576 bytes"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_is_no_dictionary_is_refused_at_the_place_that_names_it(tmp_path: Path, case: str) -> None:
    content, message = UNREADABLE[case]
    dictionary = tmp_path / "zero.json"
    if content is not None:
        dictionary.write_text(content)
    said = finetune("validate", job(tmp_path, str(dictionary)))
    assert said.exit_code == 2
    assert f"error: spec.{KEY}: " in said.output
    assert message in said.output
    assert "job.yaml:" in said.output
    assert "Traceback" not in said.output
