"""The quickstart's job: short, legal, and about files that are there."""

from pathlib import Path

from finetune_api.validation.check import problems
from finetune_cli.kubernetes_yaml import value

ROOT = Path(__file__).resolve().parents[2]
JOB = (ROOT / "docs" / "examples" / "quickstart.yaml").read_text(encoding="utf-8")


def test_the_job_fits_on_nineteen_lines() -> None:
    assert len(JOB.splitlines()) <= 19


def test_the_job_is_valid() -> None:
    assert problems(value(JOB)) == []


def test_the_job_names_the_rows_beside_it() -> None:
    spec = value(JOB)["spec"]
    paths = [spec["job"]["data"], spec["data"]["validation_path"]]
    assert paths == [f"docs/examples/quickstart/{name}.jsonl" for name in ("train", "eval")]
    assert all((ROOT / path).is_file() for path in paths)
