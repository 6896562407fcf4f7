"""Everything that needs no torch, done once per node before any rank is started: find files, read rows, tokenise.

Called by __main__. Refusals come within a second, no rank waits in a collective while another one tokenises,
and the ranks of a node share one copy of the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import finetune_data
import finetune_tokens
from finetune_api.runtime.report import DatasetRecord
from finetune_api.runtime.run_config import DEFAULT_SEQUENCE_LENGTH, RunConfig
from finetune_tokens import ChatTokenizer, Prepared

from . import sources
from .errors import ConfigRefused
from .handoff import TRAIN, VALIDATION, Handoff, Split
from .rows import Rows

_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""How models call the longest sequence they can take."""


def prepare(config: RunConfig, node: int, folder: Path, say: Callable[[str], None]) -> None:
    """Fill `folder` with what the ranks need.

    `say` gets one sentence per note that a person should read. Raises a RunError, DatasetRefused or
    TokenizerRefused.
    """
    model = sources.model_folder(config.model, weights=node == 0)  # where rank 0 is, which alone reads them
    length = sequence_length(config.sequence_length, sources.model_config(model))
    tokenizer = ChatTokenizer.load(model)
    data = sources.data_file(config.data.train)
    train = _prepared(config, data, config.data.examples, tokenizer, length)
    records = [_keep(train, TRAIN, folder, say)]
    if config.validation is not None and config.data.validation is not None:
        held_out = sources.data_file(config.data.validation)
        validation = _prepared(config, held_out, None, tokenizer, length)
        records.append(_keep(validation, VALIDATION, folder, say))
    Handoff(
        config=config, node=node, model_folder=model, data_file=data, datasets=tuple(records)
    ).write(folder)  # fmt: skip


def sequence_length(asked: int | None, model_config: dict[str, object]) -> int:
    """Tokens of the longest row. Raises ConfigRefused if the model cannot take as many as were asked for."""
    limit = _limit(model_config)
    if asked is None:
        return min(DEFAULT_SEQUENCE_LENGTH, limit or DEFAULT_SEQUENCE_LENGTH)
    if limit is not None and asked > limit:
        raise ConfigRefused(
            f"hyperparameters.sequence_length is {asked}, but the model takes at most {limit} tokens; "
            f"set {limit} or less"
        )
    return asked


def _limit(model_config: dict[str, object]) -> int | None:
    text = model_config.get("text_config")
    for part in (model_config, text if isinstance(text, dict) else {}):
        for key in _LENGTH_KEYS:
            value = part.get(key)
            if isinstance(value, int):
                return value
    return None


def _prepared(config: RunConfig, path: Path, examples: int | None, tokenizer: ChatTokenizer, length: int) -> Prepared:
    rule, share = config.data.on_bad_row, config.data.max_bad_share
    dataset = finetune_data.read(path, on_bad_row=rule, max_bad_share=share, examples=examples)
    return finetune_tokens.prepare(dataset, tokenizer, length, rule, share)


def _keep(prepared: Prepared, split: Split, folder: Path, say: Callable[[str], None]) -> DatasetRecord:
    Rows(prepared.tokens, prepared.targets, prepared.offsets, prepared.lines).save(folder / split)
    for note in prepared.notes:
        say(f"{split}: {note}")
    for problem in prepared.problems:
        say(f"{split}: skipped {problem}")
    return DatasetRecord(
        split=split,
        rows=prepared.rows,
        used=prepared.used,
        refused=prepared.refused,
        truncated=prepared.truncated,
        tokens=prepared.token_count,
        target_tokens=prepared.target_tokens,
    )
