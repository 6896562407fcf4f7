"""From the URI of a model or a dataset to files on this node.

Called by preparation.py in the launcher: once per node and before any rank is started, so that each node downloads
once and no rank waits for it inside a collective.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_api.validation import uris
from finetune_api.validation.uris import Scheme, Source, Use

from .errors import DataRefused, ModelRefused, RunError, SourceUnavailable

_WEIGHTS = "*.safetensors"
_WANTED = ("*.json", "*.jinja", "*.model", "*.txt")
"""Files of a model that are read besides its weights. Pickled weights and code are excluded."""
_TRY_LATER, _SERVER_ERROR = (408, 425, 429), 500
"""HTTP status codes that say nothing about the request itself."""


def model_folder(uri: str, *, weights: bool = True) -> Path:
    """The folder with config.json and safetensors weights. Raises ModelRefused or SourceUnavailable.

    weights: whether this node reads the weights; otherwise they are not downloaded.
    """
    source = _parse(uri, uris.MODEL, ModelRefused)
    if source.scheme is Scheme.HUB:
        folder = _download(source, weights=False)
        _require_unquantised(folder)  # before its weights are downloaded
        if weights:
            folder = _download(source, weights=True)
    elif source.scheme is Scheme.PATH:
        folder, weights = Path(source.path), True  # a bad folder is refused on every node
    else:
        raise ModelRefused(_unsupported_scheme("model", uri, "a path or org/name on the Hugging Face Hub"))
    _require_model(folder, weights)
    return folder


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
    except (OSError, ValueError) as error:
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


def _require_model(folder: Path, weights: bool) -> None:
    remedy = "use the folder that save_pretrained wrote, or a name on the Hugging Face Hub (org/name)"
    if not folder.is_dir():
        raise ModelRefused(f"model {folder}: folder not found; {remedy}")
    if not (folder / "config.json").is_file():
        raise ModelRefused(f"model {folder}: config.json not found in the folder; {remedy}")
    if weights and not any(folder.glob(_WEIGHTS)):
        raise ModelRefused(
            f"model {folder}: no *.safetensors found in the folder; other formats can run code when they are "
            "loaded, so convert the model first: model.save_pretrained(folder)"
        )
    _require_unquantised(folder)


def _require_unquantised(folder: Path) -> None:
    """Quantised weights get no gradients, and a result would need them quantised again."""
    config = model_config(folder)
    parts = {"": config} | {f"{key}.": part for key, part in config.items() if isinstance(part, dict)}
    for prefix, part in parts.items():
        found = part.get("quantization_config")
        if found and isinstance(found, dict):
            method = found.get("quant_method") or "bitsandbytes"  # whose older files do not name it
            raise ModelRefused(
                f"model {folder}: its weights are quantised ({method}, {prefix}quantization_config in config.json), "
                f"and this version trains unquantised weights only; {_UNQUANTISED.get(method, _ORIGINAL)}"
            )


_ORIGINAL = "use the model that it was made from, which is usually published under the name without the method"
_UNQUANTISED = {
    "mxfp4": "use a copy of it in bf16; of gpt-oss those are unsloth/gpt-oss-20b-BF16 and unsloth/gpt-oss-120b-BF16",
    "fp8": "use a copy of it in bf16, or make one: from_pretrained(model, quantization_config=FineGrainedFP8Config("
    "dequantize=True)), then save_pretrained(folder)",
}  # fmt: skip
"""Advice, where it is not `_ORIGINAL`: these models were published quantised only."""


def _download(source: Source, weights: bool) -> Path:
    # Imported here: most runs use a folder, and the import is slow.
    import huggingface_hub  # noqa: PLC0415
    from httpx2 import HTTPError  # noqa: PLC0415 - the errors of its connections
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    name = source.name + (f"@{source.revision}" if source.revision else "")
    try:
        folder = huggingface_hub.snapshot_download(
            source.name,
            revision=source.revision or None,
            allow_patterns=[*_WANTED, _WEIGHTS] if weights else list(_WANTED),
        )
    except (HTTPError, HFValidationError, OSError) as error:
        raise _hub_failure(name, error) from error
    return Path(folder)


def _hub_failure(name: str, error: Exception) -> RunError:
    """Why a download failed. An answer that may be another one later is no refusal.

    Where a model is neither on the Hub nor in the cache, the library reports the latter because of the former.
    """
    from httpx2 import TransportError  # noqa: PLC0415
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    message = (str(cause).splitlines() or [type(cause).__name__])[0].rstrip(".")
    status = getattr(getattr(cause, "response", None), "status_code", 0)
    if isinstance(cause, TransportError) or status in _TRY_LATER or status >= _SERVER_ERROR:
        return SourceUnavailable(
            f"model {name}: the Hub cannot be used now: {message}; check the network and HF_ENDPOINT, set a token "
            "(HF_TOKEN) if it limits the rate, or use a folder as model"
        )
    if isinstance(error, LocalEntryNotFoundError) and not status:
        return ModelRefused(f"model {name}: it is not in the cache and the Hub is switched off; unset HF_HUB_OFFLINE")
    return ModelRefused(
        f"model {name}: {message}; check the name, and that the job has a token with read access (HF_TOKEN)"
    )
