"""Nodes that download a model from a Hub on this machine, which fails in every way that may pass."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune_api.runtime.exits import Exit
from finetune_trainer.sources import Limits
from trainer.hub_server import FILES, WEIGHTS, Hub, serving
from trainer.test_launch import ranks_of

WANTED = {name: content for name, content in FILES.items() if name != "pytorch_model.bin"}
SCALED = Limits(patience=1e6, stale=1e6, notice=0.05, pause=0.02)
HASTY = SCALED._replace(stale=1.0)
"""Takes over from a node that was silent for a second."""
NODE = """
import json, signal, sys
from finetune_trainer import failures, sources
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
limits = sources.Limits(*json.loads(sys.argv[1]))
for name in sys.argv[2:]:
    kind, _, name = name.rpartition(":")
    find = sources.adapter_folder if kind else sources.model_folder
    try:
        print(json.dumps([0, str(find(f"org/{name}", limits))]), flush=True)
    except Exception as error:
        report = failures.report(error, 0, 0, 0)
        print(json.dumps([report.exit_code, report.message]), flush=True)
"""


@dataclass
class Node:
    """A process that wants models, as a launcher does."""

    process: subprocess.Popen[str]
    lines: str = ""

    @property
    def download(self) -> int:
        """The process of its own that downloads."""
        [pid] = ranks_of(self.process.pid)
        return pid

    def logs(self, text: str) -> None:
        """Returns when a line that has `text` is logged."""
        assert self.process.stderr is not None
        while text not in (line := self.process.stderr.readline()):
            assert line, self.lines
            self.lines += line

    def outcomes(self) -> list[tuple[int, str]]:
        """Exit codes with folders or messages."""
        out, err = self.process.communicate()
        self.lines += err
        return [tuple(json.loads(line)) for line in out.splitlines()]

    def folder(self) -> Path:
        [(code, folder)] = self.outcomes()
        assert code == Exit.OK, folder
        return Path(folder)


@contextmanager
def node(hub: Hub, cache: Path, *names: str, limits: Limits = SCALED) -> Iterator[Node]:
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache)}
    command = [sys.executable, "-c", NODE, json.dumps(limits), *(names or ["name"])]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield Node(process)
        finally:
            process.kill()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as found:
        yield found


def has_all_files(folder: Path) -> bool:
    return {path.name: path.read_bytes() for path in folder.iterdir()} == WANTED


def times_sent(hub: Hub) -> set[int]:
    """How often the bytes of the weights were sent."""
    return hub.times_sent(WEIGHTS.format(1)) | hub.times_sent(WEIGHTS.format(2))


@pytest.mark.parametrize("caches", [1, 2], ids=["one cache", "a cache each"])
def test_two_nodes_start_after_all_troubles_and_every_byte_is_sent_once_to_each_cache(
    tmp_path: Path, hub: Hub, caches: int
) -> None:
    """The Hub is overloaded, slow, breaks off its transfers in their middle, and is gone for a time."""
    hub.failures = {503: 2, 429: 2}
    hub.running.clear()
    with node(hub, tmp_path / "0") as first:
        hub.halves.acquire()
        with node(hub, tmp_path / str(caches - 1)) as second:
            if caches == 1:
                second.logs("model org/name: waiting for the download by ")
            else:
                hub.halves.acquire()
            hub.close()
            hub.running.set()
            first.logs("Connection refused; the next try is in ")
            hub.open()
            folders = [first.folder(), second.folder()]
    assert all(map(has_all_files, folders))
    assert times_sent(hub) == {caches}
    assert "503 Service Unavailable; the next try is in " in first.lines


def test_another_node_takes_over_from_one_that_was_killed(tmp_path: Path, hub: Hub) -> None:
    hub.running.clear()
    with node(hub, tmp_path, "name@v2") as first:
        hub.halves.acquire()
        with node(hub, tmp_path, "name@v2", limits=HASTY) as second:
            second.logs("model org/name@v2: waiting for the download by ")
            first.process.kill()
            hub.running.set()
            assert has_all_files(second.folder())


def test_a_node_that_was_paused_finds_its_lease_lost_and_uses_what_another_one_has_downloaded(
    tmp_path: Path, hub: Hub
) -> None:
    hub.running.clear()
    with node(hub, tmp_path, limits=HASTY) as first:
        hub.halves.acquire()
        with node(hub, tmp_path, limits=HASTY) as second:
            second.logs("waiting for the download by ")
            os.kill(first.download, signal.SIGSTOP)
            paused = first.download
            hub.running.set()
            assert has_all_files(second.folder())
        os.kill(paused, signal.SIGCONT)
        assert has_all_files(first.folder())
    assert "another process has taken the lease on the cache" in first.lines


def test_quantised_weights_that_are_not_read_are_refused_before_they_are_downloaded(tmp_path: Path) -> None:
    config = b'{"quantization_config": {"quant_method": "gptq"}}'
    with serving(FILES | {"config.json": config}) as hub, node(hub, tmp_path) as only:
        [(code, message)] = only.outcomes()
    assert code == Exit.MODEL_REFUSED
    assert "its weights are quantised (gptq, quantization_config in config.json)" in message
    assert hub.sent.keys() <= {"config.json", "tokenizer.json"}


def test_weights_in_another_layout_are_not_downloaded(tmp_path: Path) -> None:
    """gpt-oss has them once more in the folder original."""
    with serving(FILES | {"original/model.safetensors": bytes(1000)}) as hub, node(hub, tmp_path) as only:
        assert has_all_files(only.folder())
    assert hub.sent.keys() == WANTED.keys()


ADAPTER = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": bytes(1000)}
OF_ADAPTERS: dict[str, tuple[dict[str, bytes], str, str]] = {
    "an adapter": (ADAPTER, "adapter:name", ""),
    "an adapter beside a whole model": (FILES | ADAPTER, "adapter:name", ""),
    "a whole model in place of an adapter": (FILES, "adapter:name", "it has no adapter_config.json on the Hub"),
    "an adapter in place of a whole model": (ADAPTER, "name", "it has no config.json on the Hub; if it is"),
    "an adapter of another method": (
        ADAPTER | {"adapter_config.json": b'{"peft_type": "IA3"}'}, "adapter:name", "has peft_type 'IA3'"),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_ADAPTERS)
def test_of_an_adapter_nothing_is_downloaded_but_itself(tmp_path: Path, case: str) -> None:
    files, name, refusal = OF_ADAPTERS[case]
    with serving(files) as hub, node(hub, tmp_path, name) as only:
        [(code, said)] = only.outcomes()
    assert (code, refusal in said) == (Exit.MODEL_REFUSED if refusal else Exit.OK, True)
    weights = {name for name in hub.sent if name.endswith(".safetensors")}
    assert weights == (set() if refusal else {"adapter_model.safetensors"})


def test_an_endpoint_that_is_no_url_is_refused_at_once(tmp_path: Path, hub: Hub) -> None:
    hub.endpoint = "hub.example"
    with node(hub, tmp_path, limits=Limits()) as only:
        [(code, message)] = only.outcomes()
    assert code == Exit.SOURCE_UNAVAILABLE
    assert "check the network and HF_ENDPOINT" in message
    assert "the next try" not in only.lines


def test_a_node_that_is_stopped_ends_its_download_at_once(tmp_path: Path, hub: Hub) -> None:
    hub.running.clear()
    with node(hub, tmp_path) as only:
        hub.halves.acquire()
        download = only.download
        only.process.terminate()
        assert only.outcomes() == []
    with pytest.raises(ProcessLookupError):
        os.kill(download, 0)


def test_a_download_of_which_nothing_arrives_ends(tmp_path: Path, hub: Hub) -> None:
    hub.running.clear()
    with node(hub, tmp_path, limits=HASTY._replace(patience=0.5)) as only:
        [(code, message)] = only.outcomes()
    assert code == Exit.SOURCE_UNAVAILABLE
    assert message == "model org/name: nothing arrived for 1 s; check the network"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with all files of the model."""
    cache = tmp_path_factory.mktemp("filled")
    with serving() as hub, node(hub, cache) as only:
        assert has_all_files(only.folder())
    return cache


def read_only(cache: Path) -> None:
    """Neither a lease nor anything else can be written. (Permissions would not keep root from it.)"""
    shutil.rmtree(cache / "hub" / ".locks")
    (cache / "hub" / ".locks").touch()


def filled_by_older_versions(cache: Path) -> None:
    shutil.rmtree(cache / "hub" / "models--org--name" / "trees")


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        pytest.param([], True, id="a Hub that is gone"),
        pytest.param([read_only], True, id="a cache that is read-only, and a Hub that is gone"),
        pytest.param([read_only, filled_by_older_versions], False, id="a read-only cache without lists of files"),
        pytest.param([filled_by_older_versions], True, id="a cache without lists of files, and a Hub that is gone"),
    ],
)
def test_a_cache_that_has_everything_is_enough(
    tmp_path: Path, hub: Hub, filled: Path, change: list[Callable[[Path], None]], gone: bool
) -> None:
    cache = shutil.copytree(filled, tmp_path / "cache", symlinks=True)
    for each in change:
        each(cache)
    if gone:
        hub.close()
    with node(hub, cache, limits=SCALED._replace(patience=0.2)) as only:
        assert has_all_files(only.folder())
    assert not hub.sent
