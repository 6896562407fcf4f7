"""Models and datasets that cannot be had are refused by name, before any process is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from finetune_api.runtime.exits import Exit
from finetune_trainer import preparation, sources
from finetune_trainer.errors import ConfigRefused, DataRefused, ModelRefused


def test_a_folder_with_a_model_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    assert sources.model_folder(str(tmp_path)) == tmp_path


def test_a_folder_with_the_name_of_another_model_is_not_guessed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelRefused, match=r"write \./org/name for the folder, or hf://org/name for the Hub"):
        sources.model_folder("org/name")


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


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "extra.safetensors")


def device(folder: Path) -> None:
    (folder / "extra.safetensors").symlink_to("/dev/zero")


def elsewhere(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def incomplete(folder: Path) -> None:
    """As while it is being copied."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {f"weight.{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def binary_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_bytes(b"\xff and what nobody should read in a log")


def other_weights(folder: Path) -> None:
    (folder / "config.json").write_text('{"transformers_weights": "sub/weights.safetensors"}')


def deep_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[" * 200_000)


def deep_config(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 200_000)


def secret(folder: Path) -> None:
    (folder / "vocab.txt").symlink_to(__file__)


def secret_folder(folder: Path) -> None:
    (folder / "tokenizer").symlink_to(Path(__file__).parent)


def inner_secret(folder: Path) -> None:
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "a").symlink_to(__file__)


def text_pipe(folder: Path) -> None:
    os.mkfifo(folder / "vocab.pipe")


def no_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(pipe, "extra.safetensors is not a regular file", id="a pipe"),
        pytest.param(device, "extra.safetensors is not a regular file", id="a device"),
        pytest.param(elsewhere, "names a file in another folder, ../other.safetensors", id="files elsewhere"),
        pytest.param(
            incomplete,
            "index.json names model-00002-of-00002.safetensors, which is not there; wait until",
            id="half a copy",
        ),
        pytest.param(
            binary_index,
            "cannot be read: UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0",
            id="an index of bytes",
        ),
        pytest.param(other_weights, "config.json names another file of weights (transformers_weights)", id="renamed"),
        pytest.param(
            deep_index, "index.json cannot be read: RecursionError", id="an index that is nested too deeply"
        ),
        pytest.param(deep_config, "config.json cannot be read: maximum recursion depth", id="such a config.json"),
        pytest.param(secret, "vocab.txt leads out of the folder, to /", id="a text of the machine"),
        pytest.param(secret_folder, "tokenizer is not a regular file", id="a folder of the machine"),
        pytest.param(inner_secret, "tokenizer/a leads out of the folder, to /", id="a link in a folder"),
        pytest.param(text_pipe, "vocab.pipe is not a regular file", id="a text that never ends"),
        pytest.param(no_index, "model.safetensors.index.json cannot be read: TypeError", id="an index of nothing"),
    ],
)
def test_a_folder_that_is_not_the_whole_model_is_refused(
    tmp_path: Path, change: Callable[[Path], None], reason: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    change(tmp_path)
    with pytest.raises(ModelRefused) as refused:
        sources.model_folder(str(tmp_path))
    assert reason in str(refused.value)


def test_links_inside_of_a_model_and_into_the_cache_of_the_hub_are_followed(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    (tmp_path / "on another volume").mkdir()
    blobs.symlink_to("on another volume")
    folder.mkdir(parents=True)
    for name, content in {"config.json": "{}", "tokenizer.json": "{}", "model.safetensors": ""}.items():
        (blobs / name).write_text(content)
        (folder / name).symlink_to(f"../../blobs/{name}")
    (folder / "vocab.json").symlink_to("tokenizer.json")
    assert sources.model_folder(str(folder)) == folder


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
ORIGINAL = "use the model that it was made from"


@pytest.mark.parametrize(
    ("config", "reasons"),
    [
        pytest.param({"quantization_config": {"quant_method": "gptq"}}, ("(gptq, ", ORIGINAL), id="gptq"),
        pytest.param(
            {"quantization_config": {"quant_method": "awq"}},
            ("(awq, quantization_config in config.json)", "reads mxfp4 and fp8 in blocks", ORIGINAL),
            id="awq",
        ),
        pytest.param(
            {"quantization_config": {"load_in_4bit": True}}, ("(bitsandbytes, ", ORIGINAL), id="bitsandbytes, old"
        ),
        pytest.param(
            {"quantization_config": {"quant_method": "fp8"}},
            ("(fp8 with weight_block_size None, ", ORIGINAL),
            id="fp8 with a scale for each tensor",
        ),
        pytest.param(
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 0]}},
            ("(fp8 with weight_block_size [128, 0], ", ORIGINAL),
            id="fp8 in blocks of nothing",
        ),
        pytest.param(
            {"quantization_config": {**FP8, "activation_scheme": "static"}},
            ("(fp8 with activation_scheme 'static', ", ORIGINAL),
            id="fp8 with scales of activations",
        ),
        pytest.param(
            {"text_config": {"quantization_config": {"quant_method": "awq"}}},
            ("(awq of a part of the model, text_config.quantization_config in config.json)", ORIGINAL),
            id="the text part of a multimodal model",
        ),
        pytest.param(
            {"quantization_config": FP8, "text_config": {"quantization_config": FP8}},
            ("(fp8 of a part of the model, text_config.quantization_config in config.json)", ORIGINAL),
            id="the text part in a method that is read",
        ),
        pytest.param({"quantization_config": "fp8"}, ("is 'fp8', no JSON object; take",), id="no object"),
        pytest.param({"quantization_config": []}, ("is [], no JSON object; take",), id="a list of nothing"),
        pytest.param({"quantization_config": {"quant_method": ["fp8"]}}, ("(['fp8'], ", ORIGINAL), id="a list"),
    ],
)
def test_weights_that_are_quantised_in_another_way_are_refused(
    tmp_path: Path, config: dict[str, object], reasons: tuple[str, ...]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelRefused) as refused:
        sources.model_folder(str(tmp_path))
    assert [reason for reason in reasons if reason not in str(refused.value)] == []


@pytest.mark.parametrize("entry", [None, {}, {"quant_method": "mxfp4"}, FP8])
def test_weights_that_are_read_are_taken(tmp_path: Path, entry: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": entry}))
    (tmp_path / "model.safetensors").touch()
    assert sources.model_folder(str(tmp_path)) == tmp_path


def test_a_folder_that_is_not_there_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="nowhere: folder not found; use the folder"):
        sources.model_folder(str(tmp_path / "nowhere"))


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


class Hub(BaseHTTPRequestHandler):
    """Answers about the model org/A-B with the HTTP status A, and for its files with B; 0 closes the connection."""

    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        name = self.path.partition("org/")[2].partition("/")[0]
        status, _, files = name.partition("-")
        self._answer(
            int((files if "/resolve/" in self.path else status) or 404), _TREE if "/tree/" in self.path else _MODEL
        )

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: int, body: bytes) -> None:
        if status:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


_MODEL, _TREE = (
    b'{"id": "x", "sha": "%s"}' % (b"a" * 40),
    b'[{"type": "file", "path": "config.json", "size": 2, "oid": "b"}]',
)
U, R = int(Exit.SOURCE_UNAVAILABLE), int(Exit.MODEL_REFUSED)
ANSWERS = {
    "429-0": U, "500-0": U, "503-0": U, "0-0": U, "200-501": U,
    "401-0": R, "403-0": R, "404-0": R, "200-403": R,
}  # fmt: skip
"""Model of that Hub -> exit code."""
ASK = """
import json, sys
from finetune_trainer import hub, sources
for name in sys.argv[1:]:
    error = hub.outcome(f"org/{name}", None, sources.MODEL_CONFIG, sources.Limits(patience=0.2, pause=0.05))
    print(json.dumps([error.exit, str(error)]))
"""


def asked_of(endpoint: str, cache: Path, *names: str, offline: str = "0") -> list[tuple[int, str]]:
    """Exit codes and messages of trainers that need models. The library reads the Hub's address at its import."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": offline}
    command = [sys.executable, "-c", ASK, *names]
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_a_hub_that_cannot_answer_now_is_not_a_hub_that_refuses(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        found = asked_of(f"http://127.0.0.1:{hub.server_port}", tmp_path, *ANSWERS)
        hub.shutdown()
    assert dict(zip(ANSWERS, (code for code, _ in found), strict=True)) == ANSWERS
    for name, (code, message) in zip(ANSWERS, found, strict=True):
        assert message.startswith(f"model org/{name}: ")
        assert ("cannot be used now" in message, "check the name" in message) == (code == U, code == R)
        tries = max(times for path, times in Hub.asked.items() if f"/{name}" in path)
        assert (tries > 1) == (code == U), "what may pass is tried again until patience ends, a refusal is not"
    assert "429 Too Many Requests" in found[0][1]


def test_a_hub_whose_address_has_no_host_may_be_there_later(tmp_path: Path) -> None:
    [(code, message)] = asked_of("http://hub.invalid", tmp_path, "name")
    assert code == Exit.SOURCE_UNAVAILABLE
    assert "check the network and HF_ENDPOINT" in message


def test_a_hub_that_is_switched_off_is_said(tmp_path: Path) -> None:
    refused = "model org/name: it is not in the cache and the Hub is switched off; unset HF_HUB_OFFLINE"
    assert asked_of("http://127.0.0.1:1", tmp_path, "name", offline="1") == [(Exit.MODEL_REFUSED, refused)]


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
