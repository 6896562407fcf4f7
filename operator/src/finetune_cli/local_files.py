"""Checks of a job's files that are on this machine: rows, and the folder of a model.

`validate` calls it for files that the command line names, `run` for all of them. Sources elsewhere (a claim, the
Hub) are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import finetune_data
from finetune_api.runtime.exits import MEANINGS, Exit
from finetune_api.runtime.protocol import RESULT
from finetune_api.runtime.run_config import DataConfig
from finetune_api.validation import uris
from finetune_api.validation.problem import Problem
from finetune_api.validation.uris import Scheme
from finetune_plan.job_settings import JobSettings, Setting
from finetune_plan.resolve import is_cpu

GPU_DEVICES = ("nvidia[0-9]*", "dxg")
"""Files of /dev where CUDA has a device: on Linux, and in Linux on Windows."""
CLUSTER_ONLY = {Scheme.PVC: "on a PersistentVolumeClaim", Scheme.CONFIG_MAP: "in a ConfigMap"}


def data_problems(job: JobSettings, data: DataConfig) -> Iterator[Problem]:
    """Problems of the training rows and of the validation rows."""
    yield from _rows(job.data.train, data, data.examples)
    if data.validation:
        yield from _rows(job.data.validation, data, None)


def model_problems(job: JobSettings) -> Iterator[Problem]:
    """Problems of a model that is named by its folder."""
    model = job.model
    if not model.value or uris.MODEL.parse(model.value).scheme is not Scheme.PATH:
        return
    key, reason, folder = f"spec.{model.key}", MEANINGS[Exit.MODEL_REFUSED].reason, Path(model.value)
    if not folder.is_dir():
        yield Problem(key, reason, f"The folder {model.value} does not exist.",
                      "Correct the path, which is relative to the current folder. "
                      "A model of the Hugging Face Hub is named org/name.")  # fmt: skip
    elif not (folder / "config.json").is_file():
        yield Problem(key, reason, f"The folder {model.value} contains no model: config.json is missing.",
                      "Name the folder that contains config.json and the weights.")  # fmt: skip


def adapter_problems(job: JobSettings) -> Iterator[Problem]:
    """Problems of an adapter that is named by its folder, or by the output of its run."""
    source = job.lora.source
    if not source.value or uris.ADAPTER.parse(source.value).scheme is not Scheme.PATH:
        return
    folder = source.value
    if not any(os.path.isfile(f"{each}/adapter_config.json") for each in (folder, f"{folder}/{RESULT}")):  # noqa: PTH113 - it raises nothing
        yield Problem(f"spec.{source.key}", MEANINGS[Exit.MODEL_REFUSED].reason,
                      f"There is no adapter in {source.value}: adapter_config.json is missing.",
                      "Name the output of a run that has finished, or a folder that PEFT has written, from the "
                      "current folder on. An adapter of the Hugging Face Hub is named org/name.")  # fmt: skip


def device_problems(job: JobSettings, devices: Path = Path("/dev")) -> Iterator[Problem]:
    """A GPU that this machine does not have: the trainer would only notice after minutes of imports and loading."""
    kind = job.gpu_type.value
    if not is_cpu(job) and not any(path for name in GPU_DEVICES for path in devices.glob(name)):
        yield Problem("spec.compute.gpu_type", "NoGpu", f"The job wants {kind}, and this machine has no NVIDIA GPU.",
                      "Give --set compute.gpu_type=CPU to run on CPUs, or submit the job to a cluster.")  # fmt: skip


def cluster_only_problems(job: JobSettings) -> Iterator[Problem]:
    """Sources that exist only in a cluster, each with the option that names a local one instead."""
    settings: tuple[tuple[Setting[Any], str], ...] = (
        (job.model, "Give --model with a folder or an org/name of the Hugging Face Hub."),
        (job.lora.source, "Give --set training.lora.from=FOLDER with a folder of this machine."),
        (job.data.train, "Give --dataset with a file of this machine."),
        (job.data.validation, "Give --set data.validation_path=FILE with a file of this machine."),
        (job.output, "Give --output with a folder of this machine."),
    )
    for given, remedy in settings:
        scheme = given.value and uris.KEYS[given.key].parse(given.value).scheme
        if scheme in CLUSTER_ONLY:
            message = f"{given.value} is {CLUSTER_ONLY[scheme]} of a cluster, and this run is local."
            yield Problem(f"spec.{given.key}", "NotLocal", message, remedy)


def _rows(file: Setting[Any], data: DataConfig, examples: int | None) -> Iterator[Problem]:
    if not file.value or uris.ROWS.parse(file.value).scheme is not Scheme.PATH:
        return
    read = partial(finetune_data.read, on_bad_row=data.on_bad_row, max_bad_share=data.max_bad_share)
    try:
        read(file.value, examples=examples)
    except finetune_data.DatasetRefused as error:
        lines = [f"{error.path}: {error.reason}.", *(f"  {problem}" for problem in error.problems)]
        if error.problem_count > len(error.problems):
            lines.append(f"  and {error.problem_count - len(error.problems)} more")
        reason = MEANINGS[Exit.DATA_REFUSED].reason
        yield Problem(f"spec.{file.key}", reason, "\n".join(lines), error.remedy)
