"""`python -m finetune_api generate` writes everything that follows from the models; run it in the repository.

With --check it writes nothing, names the files that are not what they should be, and exits 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .codegen import crd, editors, key_table_file, pages, policy
from .resource import key_table
from .validation import rules

HEADER = "# Generated from crds/src/finetune_api by `python -m finetune_api generate`; `make verify` compares.\n"
CHART = "helm/finetune-operator/files"
KEPT = {"helm.sh/resource-policy": "keep", "argocd.argoproj.io/sync-options": "Prune=false"}
"""Helm's word counts for Argo CD when an application is deleted, but not when it prunes."""
KEYS = f"crds/src/finetune_api/resource/{key_table.FILE}"


def files() -> Mapping[str, str]:
    """Path in the repository -> text."""
    definition = HEADER + _yaml(crd.crd())
    refusal = HEADER + _yaml(policy.policy(), policy.binding())
    return {
        KEYS: key_table_file.text(),
        "crds/finetunejobs.yaml": definition,
        "crds/admission-policy.yaml": refusal,
        "crds/finetunejob.schema.json": json.dumps(editors.json_schema(), indent=1) + "\n",
        f"{CHART}/finetunejobs.yaml": HEADER + _yaml(_kept(crd.crd())),
        f"{CHART}/admission-policy.yaml": HEADER + _yaml(_kept(policy.policy()), _kept(policy.binding())),
        "docs/reference/keys.md": pages.keys_page(),
        "docs/reference/reasons.md": pages.reasons_page(),
        "docs/reference/conditions.md": pages.conditions_page(),
        "docs/reference/uris.md": pages.uris_page(),
        "docs/reference/exit-codes.md": pages.exit_codes_page(),
    }


def stale(root: Path) -> list[str]:
    """Files below `root` that are absent or differ from what they should be."""
    present = {name: (root / name).read_text(encoding="utf-8") for name in files() if (root / name).is_file()}
    return [name for name, text in files().items() if present.get(name) != text]


def write(root: Path) -> None:
    """Write every file below `root`: the keys first, because the rules of the others read them."""
    _write(root / KEYS, key_table_file.text())
    key_table.spec.cache_clear()
    rules.all_rules.cache_clear()
    for name, text in files().items():
        _write(root / name, text)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 1 if --check finds a stale file."""
    parser = argparse.ArgumentParser(prog="python -m finetune_api", description=__doc__)
    parser.add_argument("verb", choices=["generate"])
    parser.add_argument("--check", action="store_true", help="write nothing; name stale files")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository (default: the current folder)")
    asked = parser.parse_args(arguments)
    if not asked.check:
        write(asked.root)
        return 0
    found = stale(asked.root)
    for name in found:
        sys.stderr.write(f"{name} is stale: run `python -m finetune_api generate`\n")
    return 1 if found else 0


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _kept(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The same, and it stays when a release is removed or leaves it out: with the definition would go all jobs."""
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": KEPT}}


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, with texts of several lines as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _yaml(*documents: Mapping[str, Any]) -> str:
    text: str = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=110)
    return text


if __name__ == "__main__":
    sys.exit(main())
