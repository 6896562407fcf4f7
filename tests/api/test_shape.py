"""shape.py reads keys.json; the models, from which everything is generated, must refuse the same."""

from __future__ import annotations

import json

from pydantic import ValidationError

from api.mutations import mutant
from finetune_api.codegen.schema import structural
from finetune_api.resource import key_table
from finetune_api.resource.keys import keys
from finetune_api.resource.v1alpha1 import Spec
from finetune_api.validation import shape
from finetune_api.validation.normalize import as_stored

MUTANTS = 2000


def refused_by_models(spec: object) -> set[str]:
    """Paths of what pydantic refuses."""
    try:
        Spec.model_validate_json(json.dumps(spec))
    except ValidationError as error:
        return {
            "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in ("spec", *each["loc"]))[1:]
            for each in error.errors()
        }
    return set()


def innermost(paths: set[str]) -> set[str]:
    """Without lists and maps that have wrong entries: pydantic does not count those when it compares the length."""
    return {path for path in paths if not any(other.startswith((f"{path}[", f"{path}.")) for other in paths)}


def test_shape_problems_are_what_the_models_refuse() -> None:
    schema = structural(Spec)
    refused = 0
    for seed in range(MUTANTS):
        spec = as_stored(mutant(seed, schema))
        found = {problem.path for problem in shape.shape_problems(spec, key_table.spec(), "spec")}
        assert innermost(found) == innermost(refused_by_models(spec)), (seed, spec)
        refused += bool(found)
    assert MUTANTS / 5 < refused < MUTANTS, "mutants are neither all right nor all wrong"


def test_the_judge_knows_every_key_and_its_fate() -> None:
    declared = [(key.path.removeprefix("spec."), key.fate, key.because) for key in keys(Spec)]
    assert [tuple(each) for each in key_table.declared()] == declared
