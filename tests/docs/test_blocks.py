"""What the pages show is so: commands run, jobs are accepted, rows are read, files are what they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import finetune_data
from builders import resource
from cli.calls import finetune
from docs.pages import KNOWN, PAGES, ROOT, Block, blocks, copies, of, outputs
from finetune_cli import kubernetes_yaml

MANIFESTS = [*of("yaml"), *copies()]
Document = dict[str, Any]


def documents(block: Block) -> Iterator[Document]:
    """The manifests of a block, read as Kubernetes reads YAML."""
    for document in kubernetes_yaml.documents(block.text):
        assert isinstance(document.value, dict), f"{block}: not a map"
        yield document.value


def accept(job: Document, folder: Path) -> None:
    """The job is valid and can be rendered for a cluster."""
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    for verb in ("validate", "render"):
        answer = finetune(verb, file)
        assert answer.exit_code == 0, answer.output


def merged(base: Document, changes: Document) -> Document:
    both = {key: merged(base[key], value) for key, value in changes.items() if isinstance(base.get(key), dict)}
    return {**base, **changes, **both}


@pytest.mark.parametrize("block", list(blocks()), ids=str)
def test_a_block_says_what_it_is(block: Block) -> None:
    known = block.info in KNOWN or block in copies()
    assert known, f"{block}: unknown info string {block.info!r}; tests/docs/pages.py lists them"


@pytest.mark.parametrize("block", MANIFESTS, ids=str)
def test_a_manifest_is_whole(block: Block) -> None:
    for manifest in documents(block):
        assert manifest["apiVersion"]
        assert manifest["kind"]
        assert manifest["metadata"]["name"]


@pytest.mark.parametrize("block", copies(), ids=str)
def test_a_file_is_shown_as_it_is(block: Block) -> None:
    assert block.text == (ROOT / block.info.removeprefix("yaml ")).read_text()


@pytest.mark.parametrize("block", MANIFESTS, ids=str)
def test_a_job_is_accepted_and_rendered(block: Block, tmp_path: Path) -> None:
    for manifest in documents(block):
        if manifest["kind"] == "FinetuneJob":
            accept(manifest, tmp_path)


@pytest.mark.parametrize("file", sorted((ROOT / "docs/examples").glob("*.yaml")), ids=lambda file: file.name)
def test_an_example_is_whole_and_named_on_a_page(file: Path) -> None:
    found = [document.value for document in kubernetes_yaml.documents(file.read_text())]
    assert all(isinstance(manifest, dict) and manifest["kind"] for manifest in found)
    assert any(
        f"({target}{file.name})" in page.read_text() for page in PAGES for target in ("examples/", "docs/examples/")
    )


@pytest.mark.parametrize("block", of("yaml spec"), ids=str)
def test_keys_of_a_spec_fit_into_a_job(block: Block, tmp_path: Path) -> None:
    for keys in documents(block):
        job = resource()
        accept(job | {"spec": merged(job["spec"], keys)}, tmp_path)


@pytest.mark.parametrize("block", of("jsonl"), ids=str)
def test_good_rows_are_read(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(block.text)
    assert len(finetune_data.read(file).rows) == len(block.text.splitlines())


@pytest.mark.parametrize("line", [line for block in of("jsonl bad") for line in block.text.splitlines()])
def test_each_bad_row_is_refused(line: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(line)
    with pytest.raises(finetune_data.DatasetRefused, match="line 1"):
        finetune_data.read(file)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The repository as its reader has it."""
    for name in ("docs", "helm"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.fixture
def folder(repository: Path) -> Path:
    """The repository with a job and rows of the reader's own beside it."""
    for old, new in (("first-gpu-job.yaml", "job.yaml"), ("quickstart/train.jsonl", "rows.jsonl")):
        shutil.copy(ROOT / "docs/examples" / old, repository / new)
    shutil.copy(ROOT / "tests/cli/toml/crafter_fft.toml", repository / "config.toml")
    return repository


def shell(commands: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("block", of("sh", "sh refused"), ids=str)
def test_commands_run(block: Block, folder: Path) -> None:
    done = shell(block.text, folder)
    assert done.returncode == (2 if block.info == "sh refused" else 0), done.stdout
    assert done.stdout == outputs().get(block, done.stdout)


def test_the_first_page_needs_nothing_but_the_repository(repository: Path) -> None:
    done = shell("\n".join(block.text for block in of("sh") if block.page == "README.md"), repository)
    assert done.returncode == 0, done.stdout


def test_output_stands_after_commands_that_run() -> None:
    assert {block.info for block in outputs()} <= {"sh", "sh refused"}
