"""Models and datasets that cannot be had are refused by name, before any process is started."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest

from finetune_trainer import preparation, sources
from finetune_trainer.errors import ConfigRefused, DataRefused, ModelRefused


def test_a_folder_with_a_model_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    assert sources.model_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        pytest.param(
            [], "config.json not found in the folder; use the folder that save_pretrained wrote", id="empty"
        ),
        pytest.param(
            ["config.json", "pytorch_model.bin"],
            "no *.safetensors found in the folder; other formats can run",
            id="pickled",
        ),
    ],
)
def test_a_folder_without_a_model_is_refused(tmp_path: Path, files: list[str], reason: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ModelRefused) as refused:
        sources.model_folder(str(tmp_path))
    assert f"model {tmp_path}: " in str(refused.value)
    assert reason in str(refused.value)


def test_a_folder_that_is_not_there_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="nowhere: folder not found; use the folder"):
        sources.model_folder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("weights", [True, False], ids=["where rank 0 is", "elsewhere"])
def test_weights_are_downloaded_only_where_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: bool
) -> None:
    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        hub = ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "pytorch_model.bin", "code.py")
        for file in hub:
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    sources.model_folder("org/name@v2", weights=weights)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["config.json", *(["model-00001-of-00002.safetensors"] if weights else []), "tokenizer.json"]


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("pvc://models/llama", "does not read pvc://; use a path or org/name"),
        ("s3://models/llama", "'s3://models/llama' is refused. .* not supported here yet: a model is read from"),
        ("ftp://models/llama", "'ftp://models/llama' is refused. .*: a model is read from org/name"),
    ],
)
def test_a_model_uri_that_cannot_be_read_is_refused(uri: str, reason: str) -> None:
    with pytest.raises(ModelRefused, match=reason):
        sources.model_folder(uri)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("configmap://rows/train.jsonl", "does not read configmap://; use a path to a JSONL file"),
        ("hf://org/rows", "'hf://org/rows' is refused. .* not supported here yet: rows are read from"),
    ],
)
def test_a_data_uri_that_cannot_be_read_is_refused(uri: str, reason: str) -> None:
    with pytest.raises(DataRefused, match=reason):
        sources.data_file(uri)


def test_a_name_that_the_hub_cannot_have_is_refused() -> None:
    with pytest.raises(ModelRefused, match=r"model org/name\.git: .*check the name"):
        sources.model_folder("org/name.git")


@pytest.mark.parametrize(
    ("asked", "config", "length"),
    [
        pytest.param(None, {"max_position_embeddings": 512}, 512, id="what the model takes"),
        pytest.param(None, {"max_position_embeddings": 131072}, 2048, id="but no more than the default"),
        pytest.param(None, {}, 2048, id="the default if the model has no limit"),
        pytest.param(4096, {"max_position_embeddings": 131072}, 4096, id="the requested length"),
        pytest.param(4096, {}, 4096, id="the requested length if the model has no limit"),
        pytest.param(512, {"n_positions": 1024}, 512, id="models with other names for it"),
        pytest.param(512, {"text_config": {"max_position_embeddings": 600}}, 512, id="models with a text part"),
    ],
)
def test_sequence_length(asked: int | None, config: dict[str, object], length: int) -> None:
    assert preparation.sequence_length(asked, config) == length


def test_a_longer_sequence_than_the_model_supports_is_refused() -> None:
    with pytest.raises(
        ConfigRefused, match="sequence_length is 4096, but the model supports at most 512 tokens; set 512"
    ):
        preparation.sequence_length(4096, {"max_position_embeddings": 512})
