"""From a file to one job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.calls import JOB, finetune
from finetune_cli import job_file
from finetune_cli.dialects import toml_sections
from finetune_cli.errors import InvalidInput

CONFIG_MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: rows}\n"
TOML = '[job]\nmodel = "org/name"\ndata = "train.jsonl"\n[compute]\ngpu_type = "CPU"\n[output]\nephemeral = true\n'


def _written(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_yaml_json_and_toml_of_the_same_job_are_the_same_spec(tmp_path: Path) -> None:
    toml = job_file.read(_written(tmp_path, "sample.toml", TOML)).resource
    as_json = job_file.read(_written(tmp_path, "sample.json", json.dumps(toml))).resource
    as_yaml = job_file.read(_written(tmp_path, "sample.yaml", JOB)).resource
    assert as_json == toml
    assert as_yaml["spec"] == toml["spec"] | {"training": {"mode": "lora"}}
    assert as_yaml["metadata"] == toml["metadata"] == {"name": "sample"}


def test_other_documents_of_the_file_are_passed_over(tmp_path: Path) -> None:
    file = _written(tmp_path, "job.yaml", f"{CONFIG_MAP}---\n{JOB}---\n# nothing\n")
    assert job_file.read(file).resource["metadata"]["name"] == "sample"


def test_places_count_from_the_top_of_the_file(tmp_path: Path) -> None:
    file = _written(tmp_path, "job.yaml", f"{CONFIG_MAP}---\n{JOB}")
    assert job_file.read(file).location("spec.job.model") == f"{file}:11:5"


def test_a_byte_order_mark_is_no_part_of_the_job(tmp_path: Path) -> None:
    file = _written(tmp_path, "job.yaml", b"\xef\xbb\xbf" + JOB.encode())
    assert job_file.read(file).resource["kind"] == "FinetuneJob"


REFUSED = {
    "no such file": ("none.yaml", None, "none.yaml", "NotReadable", "No such file or directory."),
    "not UTF-8": ("a.yaml", b"a: \xff\n", "a.yaml", "NotReadable", "Byte 3 is not UTF-8."),
    "broken YAML": ("a.yaml", "a: [1\nb: 2\n", "a.yaml:2:2", "NotYaml", "expected ',' or ']'"),
    "broken JSON": ("a.json", '{"a": 1,\n "a": 2}', "a.json:2:2", "NotYaml", "duplicate key 'a'"),
    "broken TOML": ("a.toml", "[job]\nmodel = \n", "a.toml:2:9", "NotToml", "Invalid value."),
    "TOML cut short": ("a.toml", '[job]\nmodel = """x', "a.toml:2:1", "NotToml", "Unterminated string"),
    "TOML with a key twice": ("a.toml", "[a]\nb = 1\nb = 2\n", "a.toml:3:6", "NotToml", "Cannot overwrite a value."),
    "an empty file": ("a.yaml", "# nothing\n", "a.yaml", "NotAJob", "The file has 0 documents of kind FinetuneJob"),
    "two jobs": ("a.yaml", f"{JOB}---\n{JOB}", "a.yaml", "NotAJob", "The file has 2 documents of kind FinetuneJob"),
    "a list": ("a.yaml", "- 1\n", "a.yaml", "NotAJob", "The document is not a map of keys and values."),
    "another type of TOML": ("a.toml", 'type = "rl"\n', "type", "UnknownValue", "type 'rl' is not supported."),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_without_one_job_is_refused_with_its_place(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content, path, reason, message = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    if content is not None:
        _written(tmp_path, name, content)
    with pytest.raises(InvalidInput) as caught:
        job_file.read(name)
    [problem] = caught.value.problems
    assert (problem.path, problem.reason) == (path, reason)
    assert message in problem.message
    assert problem.remedy


def test_a_document_of_another_kind_is_named_by_validate(tmp_path: Path) -> None:
    result = finetune("validate", _written(tmp_path, "map.yaml", CONFIG_MAP))
    assert result.exit_code == 2
    assert "error: kind: This is not a FinetuneJob of finetune.dev/v1alpha1. [WrongKind]" in result.stdout


@pytest.mark.parametrize("text", [JOB, TOML, f"# a comment\n\n{TOML}", 'type = "sft"\n' + TOML, json.dumps({"a": 1})])
def test_standard_input_may_be_any_of_the_formats(text: str) -> None:
    result = finetune("validate", "-", "-o", "json", stdin=text)
    answer = json.loads(result.stdout)
    assert answer["file"] == "<stdin>"
    assert answer["valid"] == ("job" in text)


NAMES = {
    "qwen3_32b_qlora_4xh100.toml": "qwen3-32b-qlora-4xh100",
    "dir/Crafter FFT.toml": "crafter-fft",
    "32b.toml": "job-32b",
    "__.toml": "job",
    f"{'long-' * 12}.toml": "long-long-long-long-long-long-long-long-long",
    "ünïcode.toml": "n-code",
}


@pytest.mark.parametrize("file", NAMES)
def test_the_name_of_a_toml_job_comes_from_its_file(file: str) -> None:
    assert toml_sections.job_name(file) == NAMES[file]
