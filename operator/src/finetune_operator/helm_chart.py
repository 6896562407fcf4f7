"""`python -m finetune_operator.helm_chart` writes settings and rights into the chart; run it in the repository.

values.schema.json is written by hand but for its `settings`, which are those of settings.py; values.yaml is what the
schema says, with the descriptions as comments. The rights are those that the backends declare. With --check it
writes nothing and exits 1 if a file is stale.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from finetune_plan.backends import BACKENDS

from .identity import Json
from .settings import Settings

CHART = Path("helm/finetune-operator")
SCHEMA, VALUES, PAGE = CHART / "values.schema.json", CHART / "values.yaml", Path("docs/reference/settings.md")
RULES = CHART / "files/backend-rules.yaml"
OF_THE_CHART = ("own_namespace", "kubeconfig", "http_port")
"""Settings that are no values: the chart's own templates depend on them."""
WIDTH = 110
_GENERATED = "Generated from operator/src/finetune_operator/settings.py by `python -m finetune_operator.helm_chart`"


def value_name(setting: str) -> str:
    """watch_namespace -> watchNamespace, as Helm's users spell values."""
    first, *rest = setting.split("_")
    return first + "".join(part.capitalize() for part in rest)


def settings_schema() -> Json:
    """JSON schema of the chart's value `settings`."""
    model = Settings.model_json_schema()
    known = {n: _inline(p, model.get("$defs", {})) for n, p in model["properties"].items() if n not in OF_THE_CHART}
    for each in known.values():
        each["description"] = re.sub(
            r"\w+", lambda w: value_name(w[0]) if w[0] in known else w[0], each["description"]
        )
    return {
        "description": "Settings of the operator. What is absent has the default shown beside it.",
        "type": "object",
        "additionalProperties": False,
        "properties": {value_name(name): each for name, each in known.items()},
    }


def files(schema: Json) -> dict[Path, str]:
    """Path in the repository -> text, from the schema as it stands there."""
    whole = schema | {"properties": schema["properties"] | {"settings": settings_schema()}}
    head = f"# {_GENERATED} and values.schema.json.\n"
    return {
        SCHEMA: json.dumps(whole, indent=2, ensure_ascii=False) + "\n",
        VALUES: head + "\n".join(_values(whole["properties"], "")) + "\n",
        PAGE: "\n".join(_page()) + "\n",
        RULES: "\n".join(_rules()) + "\n",
    }


def main(arguments: list[str]) -> int:
    """Exit code 0, or 1 if --check finds a stale file."""
    generated = files(json.loads(SCHEMA.read_text(encoding="utf-8")))
    if arguments != ["--check"]:
        for path, text in generated.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [p for p, text in generated.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        sys.stderr.write(f"{path} is stale: run `python -m finetune_operator.helm_chart`\n")
    return 1 if stale else 0


def _inline(schema: Json, defs: Json) -> Json:
    """A schema without references and titles, and that allows no unknown keys."""
    found = dict(defs[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema)
    found.pop("title", None)
    for key in ("items", "additionalProperties"):
        if isinstance(found.get(key), dict):
            found[key] = _inline(found[key], defs)
    if "properties" in found:
        found["properties"] = {name: _inline(each, defs) for name, each in found["properties"].items()}
        found["additionalProperties"] = False
    return found


def _values(properties: Json, indent: str) -> Iterator[str]:
    """values.yaml. Settings stay comments: a default that an upgrade changes must not be held by a release."""
    for name, each in properties.items():
        yield from (
            ["", *_comment(each["description"], indent)] if not indent else _comment(each["description"], indent)
        )
        if name == "settings":
            yield "settings: {}"
            for setting, inner in each["properties"].items():
                yield from ["", *_comment(inner["description"], "  ")]
                yield f"  # {setting}: {_default(inner)}"
        elif "default" in each:
            yield f"{indent}{name}: {json.dumps(each['default'])}"
        else:
            yield f"{indent}{name}:"
            yield from _values(each["properties"], f"{indent}  ")


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _default(schema: Json) -> str:
    return json.dumps(schema.get("default", {}))


def _page() -> Iterator[str]:
    yield f"<!-- {_GENERATED}; `make verify` compares. -->"
    yield "# Settings of the operator\n"
    yield "Each is a value of the chart, `settings.<value>`, and a variable of the operator's environment.\n"
    yield "| value | variable | default | meaning |"
    yield "|---|---|---|---|"
    for (name, each), setting in zip(settings_schema()["properties"].items(), _settings(), strict=True):
        variable = f"{Settings.model_config['env_prefix']}{setting.upper()}"
        yield f"| `{name}` | `{variable}` | `{_default(each)}` | {each['description']} |"


def _rules() -> Iterator[str]:
    """Rules of the operator's role, as text that a template includes."""
    for backend in BACKENDS:
        for right in backend.rights:
            yield f"- apiGroups: {json.dumps([right.group])}"
            yield f"  resources: {json.dumps([right.resource])}"
            yield f"  verbs: {json.dumps(right.verbs)}"


def _settings() -> list[str]:
    return [name for name in Settings.model_fields if name not in OF_THE_CHART]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
