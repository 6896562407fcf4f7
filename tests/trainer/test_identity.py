"""Ownership of the output folder: the same job resumes, any other is refused with the keys that differ."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from finetune_api.resource.keys import keys
from finetune_api.resource.v1alpha1 import Spec
from finetune_api.runtime.run_config import IDENTITY, SPEC_KEYS, RunConfig
from finetune_data import regular
from finetune_trainer import failures, files, fingerprint, identity
from finetune_trainer.errors import DataRefused, ModelRefused, OutputRefused, RunError, StorageFailed
from trainer.models import lora, run_config

CONTENT = {"model": "sha256:aa", "data": "sha256:bb"}


def config(**changes: Any) -> RunConfig:
    return run_config(Path("model"), Path("rows.jsonl"), Path("out"), **changes)


def claim(output: Path, changed: RunConfig | None = None, rows: int = 4, **content: str) -> str:
    """The digest of the identity that the folder is claimed for."""
    document = identity.document(changed or config(), CONTENT | content, rows)
    identity.claim(output, document)
    return identity.digest(document)


@pytest.mark.parametrize(
    ("seed", "saved", "error", "given_up"),
    [
        pytest.param(8, "", ModelRefused, True, id="a refused model"),
        pytest.param(8, "", StorageFailed, False, id="another failure, after which the run goes on"),
        pytest.param(9, "", ModelRefused, False, id="the folder of another run, which was faster"),
        pytest.param(8, "checkpoints", ModelRefused, False, id="a run that has checkpoints"),
        pytest.param(8, "result", ModelRefused, False, id="a run that has a result"),
    ],
)
def test_a_run_whose_model_is_refused_gives_up_what_is_its_own_and_empty(
    tmp_path: Path, seed: int, saved: str, error: type[RunError], given_up: bool
) -> None:
    claim(tmp_path, config(seed=8))
    (tmp_path / saved).mkdir(exist_ok=True)
    refused = identity.document(config(seed=seed), CONTENT, 4)
    with pytest.raises(error), identity.given_up_if_refused(tmp_path, refused):
        raise error("weights are missing")
    assert (tmp_path / "run.json").exists() is not given_up


@pytest.mark.parametrize("owned", [True, False])
def test_checkpoints_that_are_a_link_are_refused(tmp_path: Path, owned: bool) -> None:
    """They may be those of another run, whatever run.json says."""
    output = tmp_path / "output"
    if owned:
        claim(output)
    output.mkdir(exist_ok=True)
    (output / "checkpoints").symlink_to(tmp_path)
    with pytest.raises(OutputRefused, match=r"checkpoints is a link, .* move that folder here"):
        claim(output)


def test_a_claim_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(StorageFailed, match=r"run\.json: File too large"):
            claim(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written_is_not_taken_for_one_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, _: str) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    monkeypatch.setattr(regular, "opened", refuse)
    with pytest.raises(StorageFailed, match="Operation not permitted; grant write access"):
        claim(tmp_path)


@pytest.mark.parametrize("links", [True, False])
def test_of_runs_that_start_at_the_same_moment_one_owns_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Each sees a free folder; the other one is faster. Without hard links, it is known by what is written then."""
    other = identity.document(config(seed=8), CONTENT, 4)
    create = files.create_durable

    def after_another(path: Path, content: bytes) -> bool:
        monkeypatch.setattr(identity, "create_durable", create)
        identity.claim(tmp_path, other)
        return create(path, content)

    def refuse(_: Path, __: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    monkeypatch.setattr(identity, "create_durable", after_another)
    if links:
        with pytest.raises(OutputRefused, match=r"training\.seed was 8 and is 7 now"):
            claim(tmp_path)
    else:
        claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_the_first_run_owns_the_folder_and_the_same_run_owns_it_again(tmp_path: Path) -> None:
    output = tmp_path / "new" / "out"
    digest = claim(output)
    assert digest.startswith("sha256:")
    assert len(digest) == len("sha256:") + 64
    assert claim(output) == digest
    assert json.loads((output / "run.json").read_bytes())["digest"] == digest


NOT_IDENTITY = {
    "engine": "fsdp2", "activation_checkpointing": True, "recompute": "selective", "log_every_steps": 9,
    "name": "other", "batch__per_device": 1, "batch__accumulation": 4, "checkpointing__keep": 5,
    "data__max_bad_share": 0.5, "offload": {"optimizer": True},
    "mesh": {"nodes": 2, "processes_per_node": 1, "data_parallel": 2, "tensor_parallel": 1, "pipeline_parallel": 1},
}  # fmt: skip


@pytest.mark.parametrize("key", NOT_IDENTITY)
def test_parallelism_and_logging_are_not_part_of_the_identity(tmp_path: Path, key: str) -> None:
    assert claim(tmp_path) == claim(tmp_path, config(**{key: NOT_IDENTITY[key]}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param(
            {"optimizer__learning_rate": 5e-4},
            "hyperparameters.learning_rate was 0.001 and is 0.0005 now. Choose another output, "
            "or set hyperparameters.learning_rate back to 0.001",
            id="learning rate",
        ),
        pytest.param(
            {"schedule__epochs": 3, "seed": 8},
            "hyperparameters.n_epochs was 2 and is 3 now; training.seed was 7 and is 8 now",
            id="two keys at once",
        ),
        pytest.param(
            {"precision": "fp16"},
            'the precision was "fp32" and is "fp16" now. Choose another output, '
            "or set hyperparameters.parallelism.bf16 to false, without fp16",
            id="what two keys decide",
        ),
        pytest.param({"data__examples": 10}, "data.examples was null and is 10 now", id="row limit"),
        pytest.param({"lora": lora(), "method": "lora"}, "training.lora.r was absent and is 4 now", id="adapters"),
        pytest.param({"optimizer__beta2": 0.95}, "optimizer.beta2 was 0.999 and is 0.95 now", id="no spec key"),
    ],
)
def test_another_value_is_another_run(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    claim(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(OutputRefused) as caught:
        claim(tmp_path, config(**changes))
    assert str(caught.value).startswith(f"output {tmp_path} belongs to another job: ")
    assert sentence in str(caught.value)
    assert (tmp_path / "run.json").read_bytes() == before


def test_other_rows_per_step_are_another_run(tmp_path: Path) -> None:
    claim(tmp_path, rows=4)
    with pytest.raises(OutputRefused, match=r"hyperparameters\.global_batch was 4 and is 8 now"):
        claim(tmp_path, rows=8)


def test_other_content_under_the_same_name_is_another_run(tmp_path: Path) -> None:
    claim(tmp_path)
    with pytest.raises(OutputRefused, match=r'the content of job\.data was "sha256:bb" and is "sha256:cc" now'):
        claim(tmp_path, data="sha256:cc")


LATER = {"rounding": "nearest", "weights": "bf16", "tf32": True, "added_tokens": ["<s>"]}
"""Other values than the defaults of keys that earlier versions did not have."""


def test_a_run_of_a_version_without_these_keys_goes_on_with_their_defaults(tmp_path: Path) -> None:
    before = {key: value for key, value in config().model_dump(mode="json").items() if key not in LATER}
    digest = claim(tmp_path, RunConfig.model_validate(before))
    assert not LATER.keys() & json.loads((tmp_path / "run.json").read_bytes())["identity"].keys()
    assert (
        claim(
            tmp_path, RunConfig.model_validate(before | {"rounding": "stochastic", "weights": "fp32", "tf32": False})
        )
        == digest
    )


@pytest.mark.parametrize("key", LATER)
def test_another_value_of_such_a_key_is_another_run(tmp_path: Path, key: str) -> None:
    claim(tmp_path)
    name = re.escape(SPEC_KEYS[key])
    with pytest.raises(OutputRefused, match=rf"{name} was absent and is \S+ now\. Choose .*, or remove {name}"):
        claim(tmp_path, config(**{key: LATER[key]}))


def test_a_run_that_is_to_merge_is_the_same_run(tmp_path: Path) -> None:
    adapters = {"method": "lora", "lora": lora()}
    assert claim(tmp_path, config(**adapters)) == claim(tmp_path, config(**adapters, merge=True))


def put_checkpoints(output: Path) -> None:
    (output / "checkpoints").mkdir()


def put_result(output: Path) -> None:
    (output / "result").mkdir()


def put_report_of_others(output: Path) -> None:
    (output / "report.json").write_text('{"tests": "passed"}')


def put_report_that_leads_away(output: Path) -> None:
    (output / "report.json").symlink_to(output / "nowhere")


def put_deep(output: Path) -> None:
    (output / "run.json").write_text("[" * 200_000)


def put_pipe(output: Path) -> None:
    os.mkfifo(output / "run.json")


def put_garbage(output: Path) -> None:
    (output / "run.json").write_text("{")


def put_list(output: Path) -> None:
    (output / "run.json").write_text('{"identity": []}')


@pytest.mark.parametrize(
    ("put", "sentence"),
    [
        pytest.param(
            put_checkpoints, "contains checkpoints but no run.json, so their owner is unknown", id="checkpoints"
        ),
        pytest.param(put_result, "contains result but no run.json, so their owner is unknown", id="a result"),
        pytest.param(put_report_of_others, "contains report.json but no run.json", id="a report of something else"),
        pytest.param(put_report_that_leads_away, "contains report.json but no run.json", id="a link without end"),
        pytest.param(put_deep, "run.json is not the identity of a run", id="a run.json that is nested too deeply"),
        pytest.param(put_pipe, "run.json: Is not a regular file; remove it", id="a pipe, which would never end"),
        pytest.param(put_garbage, "run.json is not the identity of a run", id="a broken run.json"),
        pytest.param(put_list, "run.json is not the identity of a run", id="a run.json of something else"),
    ],
)
def test_a_folder_with_an_unknown_owner_is_refused(
    tmp_path: Path, put: Callable[[Path], None], sentence: str
) -> None:
    put(tmp_path)
    with pytest.raises((OutputRefused, StorageFailed), match=sentence):
        claim(tmp_path)


def test_keys_and_values_of_strangers_are_quoted_and_cut(tmp_path: Path) -> None:
    claim(tmp_path)
    document = json.loads((tmp_path / "run.json").read_bytes())
    document["identity"] |= {"a\x1b[2J\nfinetune-trainer: Succeeded": 1, "seed": "7" * 10_000, "precision": "fp\n"}
    document["identity"] |= {f"content.\n{number}": number for number in range(100)}
    (tmp_path / "run.json").write_text(json.dumps(document))
    with pytest.raises(OutputRefused) as caught:
        claim(tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 5_000


def test_files_that_we_never_write_over_and_a_report_of_a_refusal_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    refusal = failures.report(ModelRefused("model.safetensors is missing"), rank=0, node=0, step=0)
    (tmp_path / "report.json").write_text(refusal.line())
    claim(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"lost+found", "report.json", "run.json"}


def test_every_key_of_the_identity_has_its_name_in_the_job_or_none_on_purpose() -> None:
    adapters = lora(layers=(0,), rank_pattern=(("q", 8),), alpha_pattern=(("q", 8.0),), rslora=True, dora=True,
                    modules_to_save=("norm",), target_parameters=("p",), trainable_tokens=("a",), token_ids=(1,),
                    bias="all", init="gaussian")  # fmt: skip
    full = config(method="qlora", lora=adapters, quantisation={"format": "nf4", "double": True}, **LATER)
    begun = config(method="lora", lora=lora(source="org/adapter", folder="/cache/adapter"))
    of_adapters = {key for key in identity.document(begun, {}, 1) if key.startswith("lora.")}
    assert of_adapters == {"lora.source", "lora.dropout"}, "its content decides the rest"
    flat = identity.document(full, {}, 1).keys() - {identity.ROWS_PER_STEP} | of_adapters
    assert flat - SPEC_KEYS.keys() == {"optimizer.beta1", "optimizer.beta2", "optimizer.epsilon"}
    assert SPEC_KEYS.keys() - flat == {"lora", "quantisation"}
    assert {key.split(".")[0] for key in SPEC_KEYS} == {key.split(".")[0] for key in IDENTITY}
    assert {f"spec.{name}" for name in SPEC_KEYS.values()} <= {key.path for key in keys(Spec)}


def model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights = {"weight": torch.arange(400_000, dtype=torch.float32)}
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    (folder / "README.md").write_text("text")
    return folder


def change_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": 1}')


def add_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def train_weights(folder: Path) -> None:
    weights = {"weight": torch.arange(400_000, dtype=torch.float32) + 1}
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def rename_tensor(folder: Path) -> None:
    weights = {"weighs": torch.arange(400_000, dtype=torch.float32)}
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def change_readme(folder: Path) -> None:
    (folder / "README.md").write_text("other text")


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        pytest.param(change_config, False, id="config"),
        pytest.param(add_template, False, id="chat template"),
        pytest.param(train_weights, False, id="weights of the same shape"),
        pytest.param(rename_tensor, False, id="a tensor's name"),
        pytest.param(empty_weights, False, id="weights whose download failed"),
        pytest.param(change_readme, True, id="readme"),
    ],
)
def test_what_distinguishes_two_models(tmp_path: Path, change: Callable[[Path], None], same: bool) -> None:
    folder = model(tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    before = fingerprint.of(folder, rows)
    change(folder)
    after = fingerprint.of(folder, rows)
    assert (after["model"] == before["model"]) is same
    assert after["data"] == before["data"]


def test_a_row_more_is_other_data(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    before = fingerprint.of(folder, rows)
    rows.write_text("{}\n{}\n")
    after = fingerprint.of(folder, rows)
    assert after["data"] != before["data"]
    assert after["model"] == before["model"]


@pytest.mark.parametrize(
    ("unreadable", "refusal"), [("model/config.json", ModelRefused), ("rows.jsonl", DataRefused)]
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, unreadable: str, refusal: type[RunError]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / unreadable).unlink(missing_ok=True)
    (tmp_path / unreadable).mkdir()  # root may read every file, but no folder as one
    with pytest.raises(
        refusal, match=f"{unreadable}: Is a directory; grant read access to the user that the trainer runs as"
    ):
        fingerprint.of(tmp_path / "model", tmp_path / "rows.jsonl")
