"""The files of a model folder beside its weights: configs, tokenizer, and the README of a merged model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from . import sources
from .files import storage_errors
from .quantisation import KEY

_DTYPE = ["dtype", "torch_dtype"]
"""Names of the key, the second of which transformers 4 wrote."""


def copy(base: Path, folder: Path, *, configs: bool, tokenizer: Path | None = None) -> None:
    """Copy what `base` has of them into `folder`, or the tokenizer of another folder. Raises StorageFailed.

    The configs of a model are those of its base: training has changed them in memory (dtype, no cache). Of a
    quantised base the weights are in bf16 now, which config.json says.
    """
    patterns = [(base, pattern) for pattern in sources.CONFIGS * configs]
    patterns += [(tokenizer or base, pattern) for pattern in sources.TOKENIZER]
    with storage_errors(folder):
        for path in sorted({path for home, pattern in patterns for path in home.glob(pattern)}):
            if path.is_dir():
                shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
            else:
                shutil.copyfile(path, folder / path.name)
        if configs and sources.quantisation(base) is not None:
            (folder / "config.json").write_text(_unquantised_config(base), encoding="utf-8")


def _unquantised_config(base: Path) -> str:
    config = sources.model_config(base)
    del config[KEY]
    language = config.get("text_config")
    for part in (config, language if isinstance(language, dict) else {}):
        named = [key for key in _DTYPE if key in part] or (_DTYPE[:1] if part is config else [])
        part.update(dict.fromkeys(named, "bfloat16"))
    return json.dumps(config, indent=2) + "\n"
