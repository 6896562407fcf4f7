"""Commands of `finetune` that need no cluster and train nothing, and what each of them prints.

cli/commands.txt  the arguments, one command a line; `< FILE` is standard input
cli/inputs        the folder in which they run
cli/output        exit code, standard output and standard error of each, word for word
cli/structure.txt what programs rely on, without sentences: exit code, JSON and YAML with the order of their keys, and
                  path, reason and place of each error. `wording` marks commands that print sentences too.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from . import plans, product

FOLDER = Path(__file__).with_name("cli")
COMMANDS = tuple((FOLDER / "commands.txt").read_text().splitlines())
OUTPUT, STRUCTURE = FOLDER / "output", FOLDER / "structure.txt"

Json = dict[str, Any]

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_IN_HELP = re.compile(r"^  (?:-\w, )?(--[\w-]+|[a-z]+(?=  ))", re.MULTILINE)
_IN_TEXT = re.compile(
    r"^(error): ([^\n]+?): .*?\[(\w+)\]$|^ *(note): .*?\[(\w+)\]$|^  (at) (\S+)$|^(\S+): (valid|refused)\b",
    re.MULTILINE | re.DOTALL,
)
_SENTENCES = {"description", "because", "fits"}


def run(command: str, folder: Path) -> Json:
    """What a command prints. `folder` has to be the current one; its name and the time are replaced."""
    shutil.copytree(FOLDER / "inputs", folder, dirs_exist_ok=True)
    arguments, _, file = command.partition(" < ")
    answer = product.finetune(arguments.split(), (folder / file).read_text() if file else None)
    return {key: _normal(value, folder) if isinstance(value, str) else value for key, value in answer.items()}


def _normal(text: str, folder: Path) -> str:
    return _TIME.sub("<time>", text.replace(str(folder), "<here>"))


def text(command: str, answer: Json) -> str:
    """The answer as it is recorded word for word."""
    return (
        f"$ finetune {command}\nexit code {answer['exit']}\n"
        f"--- standard output\n{answer['stdout']}--- standard error\n{answer['stderr']}"
    )


def file(command: str) -> Path:
    name = re.sub(r"[^A-Za-z0-9]+", "-", command.replace(" < ", " stdin ")).strip("-")
    return OUTPUT / f"{name}.txt"


def structure(command: str, answer: Json) -> Json:
    """The answer without sentences."""
    data = _parsed(answer["stdout"])
    plain = _undescribed(plans.structure(data))
    return {
        "exit": answer["exit"],
        "wording": plain is None or plain != data or bool(answer["stderr"]),
        "stdout": plain if data is not None else _skeleton(command, answer["stdout"]),
        "stderr": _skeleton(command, answer["stderr"]),
    }


def line(command: str, found: Json) -> str:
    """A structure as it is recorded: keys keep their order."""
    return f"{command}\t{json.dumps(found, ensure_ascii=False)}"


def recorded() -> dict[str, str]:
    """Command -> line of structure.txt."""
    return {entry.partition("\t")[0]: entry for entry in STRUCTURE.read_text().splitlines()}


def _parsed(text: str) -> Any:
    """The map or list that a text is in JSON or YAML; None if it is prose."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return found if isinstance(found, (dict, list)) and _is_document(text) else None


def _is_document(text: str) -> bool:
    return re.match(r"[\[{]|- |[A-Za-z]\w*:(\n| )", text) is not None and not text.startswith(("error:", "Usage:"))


def _undescribed(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: "..." if key in _SENTENCES else _undescribed(value) for key, value in data.items()}
    return [_undescribed(value) for value in data] if isinstance(data, list) else data


def _skeleton(command: str, text: str) -> list[str]:
    """The parts of a text that programs may search for."""
    if "--help" in command:
        return _IN_HELP.findall(text)
    return [" ".join(filter(None, match.groups())) for match in _IN_TEXT.finditer(text)]
