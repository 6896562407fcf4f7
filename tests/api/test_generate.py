"""What is checked in is what the models say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml

from api.mutations import mutant
from builders import Json, resource
from finetune_api import __main__ as generate
from finetune_api.codegen import crd, editors, pages, policy
from finetune_api.codegen.schema import structural
from finetune_api.resource.keys import keys
from finetune_api.resource.v1alpha1 import Spec
from finetune_api.runtime import exits
from finetune_api.validation import check
from finetune_api.validation.rules import all_rules

REPOSITORY = Path(__file__).parents[2]


def _pattern(_: object, pattern: str, instance: object, __: object) -> Iterator[jsonschema.ValidationError]:
    """To editors and the API server `$` is the end of the text, to Python also the place before a last newline."""
    if isinstance(instance, str) and not re.search(re.sub(r"\$(?=$|[)|])", r"\\Z", pattern), instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


_AS_EDITORS = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": _pattern})  # type: ignore[no-untyped-call]
VALIDATOR = _AS_EDITORS(editors.json_schema())


def test_the_generated_files_are_fresh() -> None:
    assert generate.stale(REPOSITORY) == []


def test_a_stale_and_an_absent_file_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["generate", "--root", str(tmp_path)]) == 0
    (tmp_path / "docs/reference/keys.md").write_text("something else")
    (tmp_path / "crds/admission-policy.yaml").unlink()
    assert generate.main(["generate", "--check", "--root", str(tmp_path)]) == 1
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == [
        "crds/admission-policy.yaml", "docs/reference/keys.md",
    ]  # fmt: skip


def test_the_chart_carries_the_same_manifests_and_helm_keeps_them() -> None:
    for name in ("finetunejobs.yaml", "admission-policy.yaml"):
        chart = (REPOSITORY / "helm/finetune-operator/files" / name).read_text()
        kept = f"  annotations:\n{''.join(f'    {k}: {v}{chr(10)}' for k, v in generate.KEPT.items())}"
        assert chart.count(kept) == chart.count("\nkind: ")
        assert chart.replace(kept, "") == (REPOSITORY / "crds" / name).read_text()


def test_the_manifests_read_back_as_they_were_meant() -> None:
    """Blocks, quotes and folds of YAML change nothing."""
    [definition] = yaml.safe_load_all(generate.files()["crds/finetunejobs.yaml"])
    assert definition == json.loads(json.dumps(crd.crd()))
    assert list(yaml.safe_load_all(generate.files()["crds/admission-policy.yaml"])) == [
        policy.policy(), policy.binding(),
    ]  # fmt: skip


def test_the_key_page_lists_every_key_with_its_fate() -> None:
    sections = pages.keys_page().split("\n## ")
    for key in keys(Spec):
        section, _, name = key.path.removeprefix("spec.").rpartition(".")
        [table] = [text for text in sections if text.startswith(f"{section or 'spec'}\n")]
        [row] = [line for line in table.splitlines() if line.startswith(f"| `{name}` |")]
        assert row.replace("\\|", "").split(" | ")[2] == key.fate.value, row
        assert key.because in row


def test_the_reason_page_lists_every_rule() -> None:
    text = pages.reasons_page()
    for rule in all_rules():
        assert f"\n## {rule.reason}\n" in text
        assert f"| `{rule.path}` | {rule.message.replace('|', chr(92) + '|')} |" in text


def test_the_exit_code_page_lists_every_code() -> None:
    text = pages.exit_codes_page()
    assert all(f"\n| {int(code)} | `{exits.MEANINGS[code].reason}` |" in text for code in exits.Exit)


@pytest.mark.parametrize(
    "wrong",
    [{"compute.gpu_count": 0}, {"compute.gpucount": 1}, {"lora.dropout": 1}, {"pods.memory": "lots"}],
    ids=str,
)
def test_an_editor_marks_what_is_malformed(wrong: Json) -> None:
    assert not VALIDATOR.is_valid(resource(wrong))


def test_an_editor_and_validate_agree_on_shapes() -> None:
    schema = structural(Spec)
    rules = {rule.message for rule in all_rules()}
    for seed in range(300):
        job = resource(spec=mutant(seed, schema))
        malformed = [p for p in check.problems(job) if not any(p.message.startswith(rule) for rule in rules)]
        stored = json.loads(json.dumps(job), object_hook=_without_nulls)
        assert VALIDATOR.is_valid(stored) == (not malformed), (seed, malformed)


def _without_nulls(given: Json) -> Json:
    """An editor marks a key without a value; the API server takes it for absent."""
    return {name: value for name, value in given.items() if value is not None}
