"""Checks of a job's files that are on this machine: rows, and the folder of a model.

`validate` calls it for files that the command line names, `run` for all of them. Sources elsewhere (a claim, the
Hub, a bucket) are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import finetune_data
from finetune_api.resource.aliases import DATA, MODEL
from finetune_api.runtime.exits import MEANINGS, Exit
from finetune_api.runtime.run_config import Data
from finetune_api.validation import uris
from finetune_api.validation.problem import Problem
from finetune_api.validation.uris import Scheme
from finetune_plan.facts import Given, first

VALIDATION = ("data.validation_path",)
OUTPUT = ("output.uri",)
CLUSTER_ONLY = {Scheme.PVC: "on a PersistentVolumeClaim", Scheme.CONFIG_MAP: "in a ConfigMap"}


def data_problems(spec: Mapping[str, Any], data: Data) -> Iterator[Problem]:
    """Problems of the training rows and of the validation rows."""
    yield from _rows(first(spec, DATA), data, data.examples)
    if data.validation:
        yield from _rows(first(spec, VALIDATION), data, None)


def model_problems(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of a model that is named by its folder."""
    model = first(spec, MODEL)
    if model is None or uris.parse(model.value, model=True).scheme is not Scheme.PATH:
        return
    key, reason, folder = f"spec.{model.path}", MEANINGS[Exit.MODEL_REFUSED].reason, Path(model.value)
    if not folder.is_dir():
        yield Problem(key, reason, f"The folder {model.value} does not exist.",
                      "Correct the path, which is relative to the current folder. "
                      "A model of the Hugging Face Hub is named org/name.")  # fmt: skip
    elif not (folder / "config.json").is_file():
        yield Problem(key, reason, f"The folder {model.value} contains no model: config.json is missing.",
                      "Name the folder that contains config.json and the weights.")  # fmt: skip


def cluster_only_problems(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """Sources that exist only in a cluster, each with the option that names a local one instead."""
    for keys, remedy in (
        (MODEL, "Give --model with a folder or an org/name of the Hugging Face Hub."),
        (DATA, "Give --dataset with a file of this machine."),
        (VALIDATION, "Give --set data.validation_path=FILE with a file of this machine."),
        (OUTPUT, "Give --output with a folder of this machine."),
    ):
        given = first(spec, keys)
        scheme = given and uris.parse(given.value, model=keys is MODEL).scheme
        if given and scheme in CLUSTER_ONLY:
            message = f"{given.value} is {CLUSTER_ONLY[scheme]} of a cluster, and this run is local."
            yield Problem(f"spec.{given.path}", "NotLocal", message, remedy)


def _rows(file: Given | None, data: Data, examples: int | None) -> Iterator[Problem]:
    if file is None or uris.parse(file.value).scheme is not Scheme.PATH:
        return
    read = partial(finetune_data.read, on_bad_row=data.on_bad_row, max_bad_share=data.max_bad_share)
    try:
        read(file.value, examples=examples)
    except finetune_data.DatasetRefused as error:
        lines = [f"{error.path}: {error.reason}.", *(f"  {problem}" for problem in error.problems)]
        if error.problem_count > len(error.problems):
            lines.append(f"  and {error.problem_count - len(error.problems)} more")
        reason = MEANINGS[Exit.DATA_REFUSED].reason
        yield Problem(f"spec.{file.path}", reason, "\n".join(lines), error.remedy)
