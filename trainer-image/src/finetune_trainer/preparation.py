"""Preparation without torch, once per node before any rank is started: find files, read rows, tokenise.

Called by node.py. Bad input is refused before torch is imported, no rank waits in a collective while another one
tokenises, and the ranks of a node share one copy of the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import finetune_data
import finetune_tokens
from finetune_api.runtime.report import DatasetRecord
from finetune_api.runtime.run_config import DEFAULT_SEQUENCE_LENGTH, Lora, RunConfig
from finetune_api.validation.unknown import nearest
from finetune_tokens import ChatTokenizer, TokenizedDataset
from finetune_tokens import folder as files

from . import adapter_folder, fingerprint, sources, vocabulary
from .errors import ConfigRefused, ModelRefused
from .handoff import TRAIN, VALIDATION, Handoff, Split
from .rows import Rows

_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""Keys of config.json for the longest sequence that the model supports."""


def prepare(config: RunConfig, node: int, folder: Path, log: Callable[[str], None]) -> None:
    """Write the handoff and the prepared rows into `folder`.

    `log` receives one sentence per warning. Raises a RunError, DatasetRefused or TokenizerRefused.
    """
    base = model = sources.model_folder(config.model)
    _require_other_folder(Path(config.output), model, "job.model")
    digests: dict[str, str] = {}
    if config.lora is not None and config.lora.source:
        lora = continued(config.lora, config.model, model, log)
        _require_other_folder(Path(config.output), Path(lora.folder), "training.lora.from")
        config = config.model_copy(update={"lora": lora})
        digests = fingerprint.of_adapter(Path(lora.folder))
    length = sequence_length(config.sequence_length, sources.model_config(model))
    tokenizer, added = ChatTokenizer.load(model), tuple[int, ...]()
    if config.added_tokens:
        model, added = vocabulary.with_tokens(base, folder / "model", config.added_tokens)
        tokenizer = ChatTokenizer.load(model)
    if config.lora is not None:
        lora = with_token_ids(config.lora, tokenizer, added)
        config = config.model_copy(update={"lora": lora})
    data = sources.data_file(config.data.train)
    train = _tokenize(config, data, config.data.examples, tokenizer, length)
    records = [_save_split(train, TRAIN, folder, log)]
    if config.validation is not None and config.data.validation is not None:
        held_out = sources.data_file(config.data.validation)
        validation = _tokenize(config, held_out, None, tokenizer, length)
        records.append(_save_split(validation, VALIDATION, folder, log))
    Handoff(
        config=config, node=node, base_folder=base, model_folder=model, data_file=data, datasets=tuple(records),
        digests=fingerprint.of(base, data) | digests | _digests(folder, records),
    ).write(folder)  # fmt: skip


def continued(lora: Lora, named: str, model: Path, log: Callable[[str], None]) -> Lora:
    """`lora` with the values of the adapter that training continues from, which has to be one of `model`.

    named: the model as the job names it. Raises ModelRefused.
    """
    folder = sources.adapter_folder(lora.source)
    found, trained = adapter_folder.continued(lora, folder), adapter_folder.trained_on(folder)
    if trained is not None and not fingerprint.model_has(model, trained):
        raise ModelRefused(
            f"training.lora.from: job.model is not, file by file, the base that {folder} was trained on; set "
            "job.model to that one, or, if their weights are the same, copy the folder out of its output and name "
            "the copy"
        )
    base, _ = adapter_folder.base(adapter_folder.settings(folder))
    if trained is None and base and base != named.removeprefix("hf://").partition("@")[0]:
        log(f"note: {folder} names {base} as its base, and job.model is {named}; they have to have the same weights")
    return found


def with_token_ids(lora: Lora, tokenizer: ChatTokenizer, added: tuple[int, ...]) -> Lora:
    """`lora` with the numbers of the tokens whose rows are trained: those of the job, and those `added` to the model.

    Raises ConfigRefused.
    """
    if not lora.source:
        ids = _token_ids(lora.trainable_tokens, tokenizer) | set(added)
        return lora.model_copy(update={"token_ids": tuple(sorted(ids))})
    both = dict.fromkeys((*lora.token_ids, *added))  # in the order of the adapter's file
    _require_same_tokens(Path(lora.folder), tokenizer, both)
    return lora.model_copy(update={"token_ids": tuple(both)})


def _require_same_tokens(folder: Path, tokenizer: ChatTokenizer, ids: Iterable[int]) -> None:
    """Raises ConfigRefused for a number that is another token, or none, to the adapter in `folder`."""
    theirs = files.tokenizer(folder) if (folder / "tokenizer.json").is_file() else tokenizer.tokenizer
    for number in ids:
        own, other = (each.id_to_token(number) for each in (tokenizer.tokenizer, theirs))
        if own is None or own != other:
            raise ConfigRefused(
                f"training.lora.from: token {number} is {json.dumps(other)} in {folder}, and {json.dumps(own)} here; "
                f"set {vocabulary.KEY} to the tokens that its run has added, in the same order, or leave from out"
            )


def _token_ids(texts: Sequence[str], tokenizer: ChatTokenizer) -> set[int]:
    """Raises ConfigRefused for a text that is no token."""
    found = set()
    for text, encoding in zip(texts, tokenizer.encode(texts), strict=True):
        known = len(encoding.ids) == 1 and tokenizer.decode(encoding.ids).strip() == text.strip()
        if not known:
            near = nearest(text, tuple(tokenizer.added))
            hint = f" (did you mean {near}?)" if near else ""
            what = "unknown to" if len(encoding.ids) == 1 else f"{len(encoding.ids)} tokens of"
            raise ConfigRefused(
                f"training.lora.trainable_tokens: {json.dumps(text)} is {what} job.model{hint}, and only a token has "
                f"a row; correct it, or add it ({vocabulary.KEY})"
            )
        found.update(encoding.ids)
    return found


def sequence_length(requested: int | None, model_config: dict[str, object]) -> int:
    """Tokens of the longest row. Raises ConfigRefused if the model does not support that many."""
    limit = _limit(model_config)
    if requested is None:
        return min(DEFAULT_SEQUENCE_LENGTH, limit or DEFAULT_SEQUENCE_LENGTH)
    if limit is not None and requested > limit:
        raise ConfigRefused(
            f"hyperparameters.sequence_length is {requested}, but the model supports at most {limit} tokens; "
            f"set {limit} or less"
        )
    return requested


def _require_other_folder(output: Path, used: Path, key: str) -> None:
    if output.resolve() == used.resolve():
        raise ConfigRefused(
            f"output.uri: {output} is the folder of {key}, which a run must leave as it is; choose another folder"
        )


def _limit(model_config: dict[str, object]) -> int | None:
    text = model_config.get("text_config")
    for part in (model_config, text if isinstance(text, dict) else {}):
        for key in _LENGTH_KEYS:
            value = part.get(key)
            if isinstance(value, int):
                return value
    return None


def _digests(folder: Path, records: list[DatasetRecord]) -> dict[str, str]:
    return {record.split: Rows.load(folder / record.split).digest for record in records}


def _tokenize(
    config: RunConfig, path: Path, examples: int | None, tokenizer: ChatTokenizer, length: int
) -> TokenizedDataset:
    on_bad_row, share = config.data.on_bad_row, config.data.max_bad_share
    dataset = finetune_data.read(path, on_bad_row=on_bad_row, max_bad_share=share, examples=examples)
    return finetune_tokens.prepare(dataset, tokenizer, length, on_bad_row, share)


def _save_split(tokenized: TokenizedDataset, split: Split, folder: Path, log: Callable[[str], None]) -> DatasetRecord:
    Rows(tokenized.tokens, tokenized.targets, tokenized.offsets, tokenized.lines).save(folder / split)
    for note in tokenized.notes:
        log(f"{split}: {note}")
    for problem in tokenized.problems:
        log(f"{split}: skipped {problem}")
    return DatasetRecord(
        split=split,
        rows=tokenized.rows,
        used=tokenized.used,
        refused=tokenized.refused,
        truncated=tokenized.truncated,
        tokens=tokenized.token_count,
        target_tokens=tokenized.target_tokens,
    )
