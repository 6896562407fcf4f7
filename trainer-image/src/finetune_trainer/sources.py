"""From the URI of a model, an adapter or a dataset to files on this node.

Called by preparation.py in the launcher: once per node and before any rank is started, so that each node downloads
once and no rank waits for it inside a collective.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from finetune_api.runtime.protocol import RESULT
from finetune_api.validation import uris
from finetune_api.validation.uris import Scheme, Source, Use

from . import adapter_folder as adapters
from . import quantisation as quantisations
from .adapter_folder import CONFIG as ADAPTER_CONFIG
from .adapter_folder import WEIGHTS as ADAPTER_WEIGHTS
from .errors import DataRefused, ModelRefused, RunError, SourceUnavailable
from .quantisation import Quantisation

_WEIGHTS = "*.safetensors"
SMALL = ["*.json", "*.jinja", "*.model", "*.txt"]
WANTED = [*SMALL, _WEIGHTS]
"""Files of a model that are read. Pickled weights and code are excluded."""
IGNORED = f"*/{_WEIGHTS}"
"""Of `WANTED`: the same weights once more, in the layout of another library."""
CONFIGS = ("config.json", "generation_config.json", "*processor_config.json")
"""Of a model, with the processors of images and sounds; a result that is a model takes them over."""
TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
    "*.tiktoken", "chat_template*",
)  # fmt: skip
"""Files and folders of a tokenizer and its template; every result takes them over."""
MODEL_CONFIG = "config.json"
GROWTH = "finetune-vocabulary.json"
"""In a folder that vocabulary.py has made of a model."""
FILES = {MODEL_CONFIG: WANTED, ADAPTER_CONFIG: [*SMALL, ADAPTER_WEIGHTS]}
"""Files that are downloaded of a repository, by the one that shows what it is."""
MISTAKEN = {
    MODEL_CONFIG: "if it is an adapter, set job.model to its base and training.lora.from to the adapter; else "
    "correct the name",
    ADAPTER_CONFIG: "if it is a whole model, set job.model to it and leave training.lora.from out; else correct "
    "the name",
}
"""What to do where a repository or a folder lacks the file that a model or an adapter has."""
LOST = 75
"""Exit code of a download that lost its lease on the cache: EX_TEMPFAIL of sysexits.h."""


class Limits(NamedTuple):
    """Seconds, in a download from the Hub."""

    patience: float = 600.0
    """For troubles that may pass, such as a rate limit, without one request between them that succeeds."""
    stale: float = 60.0
    """After which another process takes over a lease without a heartbeat; network file systems cache for as long."""
    notice: float = 60.0
    """Between two lines about the download of another node."""
    pause: float = 1.0
    """Before the second try; later ones wait longer."""


_LIMITS = Limits()


def model_folder(uri: str, limits: Limits = _LIMITS) -> Path:
    """The folder with config.json and safetensors weights. Raises a RunError."""
    folder = _folder("model", uri, uris.MODEL, MODEL_CONFIG, limits)
    _require_model(folder)
    return folder


def adapter_folder(uri: str, limits: Limits = _LIMITS) -> Path:
    """The folder of the adapter, which may be in the output of a run. Raises a RunError."""
    return adapters.located(_folder("adapter", uri, uris.ADAPTER, ADAPTER_CONFIG, limits))


def _folder(what: str, uri: str, use: Use, config: str, limits: Limits) -> Path:
    source = _parse(uri, use, ModelRefused)
    if source.scheme is Scheme.PATH:
        return Path(source.path)
    if source.scheme is not Scheme.HUB:
        raise ModelRefused(_unsupported_scheme(what, uri, "a path or org/name on the Hugging Face Hub"))
    if "://" not in uri and any((Path(uri) / inner / config).exists() for inner in (".", RESULT)):
        raise ModelRefused(
            f"{what} {uri} is a name on the Hugging Face Hub, and a folder of that name is here: write ./{uri} "
            f"for the folder, or hf://{uri} for the Hub; or rename the folder to continue an earlier run"
        )
    return _download(source, config, limits)


def data_file(uri: str) -> Path:
    """The file with the rows. Raises DataRefused for a scheme that this version cannot read."""
    source = _parse(uri, uris.ROWS, DataRefused)
    if source.scheme is not Scheme.PATH:
        raise DataRefused(_unsupported_scheme("data", uri, "a path to a JSONL file"))
    return Path(source.path)


def model_config(folder: Path) -> dict[str, Any]:
    """The model's config.json. Raises ModelRefused."""
    try:
        document = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelRefused(f"model {folder}: config.json cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ModelRefused(f"model {folder}: config.json is not a JSON object; save the model again")
    return document


def _parse(uri: str, use: Use, refusal: type[ModelRefused | DataRefused]) -> Source:
    try:
        return use.parse(uri)
    except ValueError as error:
        raise refusal(str(error)) from error


def _unsupported_scheme(what: str, uri: str, accepted: str) -> str:
    scheme = uri.partition("://")[0]
    return f"{what} {uri}: this version of the trainer does not read {scheme}://; use {accepted}"


def _require_model(folder: Path) -> None:
    try:
        there = folder.is_dir()
    except OSError as error:  # such as a name that is too long
        raise ModelRefused(f"model {str(folder)[:_QUOTED]}: {error.strerror}; {_REMEDY}") from error
    if not there:
        raise ModelRefused(f"model {folder}: folder not found; {_REMEDY}")
    if not (folder / MODEL_CONFIG).is_file():
        remedy = MISTAKEN[MODEL_CONFIG] if (folder / ADAPTER_CONFIG).is_file() else _REMEDY
        raise ModelRefused(f"model {folder}: config.json not found in the folder; {remedy}")
    if not any(folder.glob(_WEIGHTS)):
        raise ModelRefused(
            f"model {folder}: no *.safetensors found in the folder; other formats can run code when they are "
            "loaded, so convert the model first: model.save_pretrained(folder)"
        )
    if (folder / GROWTH).exists():
        raise ModelRefused(f"model {folder}: {GROWTH} belongs in folders that the trainer makes; remove it")
    _require_own_files(folder)
    require_own_texts(folder)
    quantisation(folder)


def _require_own_files(folder: Path) -> None:
    """The content of the folder is the model: no pipe or device that never ends, and no files that are elsewhere."""
    for path in sorted(path for pattern in WANTED for path in folder.glob(pattern)):
        if not path.is_file():
            raise ModelRefused(f"model {folder}: {path.name} is not a regular file; {_REMEDY}")
    if "transformers_weights" in model_config(folder):
        raise ModelRefused(
            f"model {folder}: config.json names another file of weights (transformers_weights), which this version "
            "does not read; rename that file to model.safetensors and remove the key"
        )
    index = folder / "model.safetensors.index.json"
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values()) if index.is_file() else set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"  # the repr of some errors has the whole file
        raise ModelRefused(f"model {folder}: {index.name} cannot be read: {what}; {_REMEDY}") from error
    for name in sorted(map(str, names)):
        if Path(name).name != name:
            raise ModelRefused(f"model {folder}: {index.name} names a file in another folder, {name}; {_REMEDY}")
        if not (folder / name).is_file() and not (folder / "model.safetensors").is_file():
            raise ModelRefused(
                f"model {folder}: {index.name} names {name}, which is not there; wait until the folder is complete, "
                "or copy the file"
            )


def require_own_texts(folder: Path) -> None:
    """What a result takes over is the folder's own. Only in the cache of the Hub do files lead out of it.

    Raises ModelRefused.
    """
    home = folder.resolve()
    homes = (home, (home.parent.parent / "blobs").resolve())
    for path in sorted(found for pattern in (*CONFIGS, *TOKENIZER) for found in folder.glob(pattern)):
        for each in (path, *path.rglob("*")):
            target = each.resolve()
            if not target.is_file() and (each.is_symlink() or not each.is_dir()):
                raise ModelRefused(f"model {folder}: {each.relative_to(folder)} is not a regular file; remove it")
            if not any(target.is_relative_to(inside) for inside in homes):
                raise ModelRefused(
                    f"model {folder}: {each.relative_to(folder)} leads out of the folder, to {target}, which would "
                    "be copied into the result; put a copy in its place, or remove it"
                )


def quantisation(folder: Path) -> Quantisation | None:
    """How the folder's weights are quantised; None if they are not. Raises ModelRefused for what is not read."""
    return quantisations.of(folder, model_config(folder))


_QUOTED = 200
"""Characters of a name that no file can have."""
_REMEDY = "use the folder that save_pretrained wrote, or a name on the Hugging Face Hub (org/name)"


def _download(source: Source, config: str, limits: Limits) -> Path:
    """Runs hub.py. A process that has lost its lease on the cache waits for the one that has it."""
    command = (sys.executable, "-m", f"{__package__}.hub", source.name, source.revision, config, *map(str, limits))
    code = LOST
    while code == LOST:
        done = subprocess.run(  # kills the process if this one is stopped
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True, check=False
        )
        code = done.returncode
    if code:
        raise SourceUnavailable(f"model {source.name}: its download ended with exit code {code}; its log says why")
    outcome: Path | RunError = pickle.loads(done.stdout)  # noqa: S301 - of our own process
    if isinstance(outcome, RunError):
        raise outcome
    return outcome
