"""Small tokenizers and chat templates with the structure of common model families.

The templates are our own words with the token structure of the originals; the tokenizers are trained here, on
a few sentences, with the pipeline of the originals: byte-level BPE, or pieces with a marker for the space.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from finetune_data import Dataset
from finetune_data.formats import parse
from finetune_tokens import ChatTokenizer, TokenizedDataset

TEMPLATES = Path(__file__).parent / "templates"
CORPUS = [
    "What is two plus two? It is four. And three plus three? It is six. Be kind. Be brief. Goodbye.",
    "system user assistant model tool Tools think name arguments weather city Rome sunny",
    "What is the weather in Rome? It is sunny in Rome. I add two and two. I add three and three.",
] * 4


def _trained(tokenizer: Tokenizer, special: tuple[str, ...], alphabet: list[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level(*special: str) -> Tokenizer:
    """As GPT-2, SmolLM2, Llama 3 and Qwen have it. Its file cuts the spaces off the offsets, as GPT-2's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, special, pre_tokenizers.ByteLevel.alphabet())


def composed(*special: str) -> Tokenizer:
    """Byte-level after Unicode composition, as in Qwen, with the thinking tags as non-special added tokens."""
    tokenizer = byte_level(*special)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens(
        [AddedToken(mark, normalized=False) for mark in ("<think>", "</think>", "<tool_call>", "</tool_call>")]
    )
    return tokenizer


def with_start(*special: str) -> Tokenizer:
    """Byte-level, and a file that adds the first special token to every text, as Llama 3 has it."""
    tokenizer = byte_level(*special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], 0)]
    )
    return tokenizer


def pieces(*special: str) -> Tokenizer:
    """Words with a mark for the space, unknown characters as bytes, as Mistral has it."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _trained(tokenizer, (*special, *(f"<0x{byte:02X}>" for byte in range(256))), [])


def unsplit(*special: str) -> Tokenizer:
    """The same with the space replaced before anything else, as Gemma has it."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=special[0]))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _trained(tokenizer, (*special, *(f"<0x{byte:02X}>" for byte in range(256))), [])


@dataclass(frozen=True)
class Family:
    """One kind of chat model."""

    template: str
    build: Callable[..., Tokenizer]
    special: tuple[str, ...]
    stop: str
    config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    system: bool = True


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FAMILIES = {
    "chatml": Family("chatml", byte_level, CHATML, "<|im_end|>", {"eos_token": "<|im_end|>"}),
    "headers": Family(
        "headers",
        with_start,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
        "<|eot_id|>",
        {"bos_token": {"__type": "AddedToken", "content": "<|begin_of_text|>"}, "eos_token": "<|end_of_text|>"},
        {"eos_token_id": [4, 3]},
    ),
    "instruct": Family(
        "instruct",
        pieces,
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        "</s>",
        {"bos_token": "<s>", "eos_token": "</s>"},
        system=False,
    ),
    "turns": Family(
        "turns",
        unsplit,
        ("<unk>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        {"bos_token": "<bos>", "eos_token": "<eos>"},
        {"eos_token_id": [2, 4]},
        system=False,
    ),
    "thinking": Family("thinking", composed, CHATML, "<|im_end|>", {"eos_token": "<|im_end|>"}),
    "blocks": Family("blocks", byte_level, CHATML, "<|im_end|>", {"eos_token": "<|im_end|>"}),
    "macros": Family("macros", byte_level, CHATML, "<|im_end|>", {"eos_token": "<|im_end|>"}),
}


def save(folder: Path, family: Family, template: str | None = None) -> Path:
    """A model's folder, as far as its tokenizer goes, with another chat template if one is given."""
    family.build(*family.special).save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **family.config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    if family.generation:
        (folder / "generation_config.json").write_text(json.dumps(family.generation), "utf-8")
    source = (TEMPLATES / f"{family.template}.jinja").read_text("utf-8") if template is None else template
    (folder / "chat_template.jinja").write_text(source, "utf-8")
    return folder


def trained_texts(tokenized: TokenizedDataset, tokenizer: ChatTokenizer) -> list[str]:
    """The text of each uninterrupted run of trained tokens, in order."""
    texts = []
    for tokens, targets in (tokenized.sequence(i) for i in range(len(tokenized))):
        edges = np.flatnonzero(np.diff(targets)) + 1
        runs = zip(np.split(tokens, edges), np.split(targets, edges), strict=True)
        texts += [tokenizer.decode(part) for part, flags in runs if flags[0]]
    return texts


def dataset(*records: dict[str, Any]) -> Dataset:
    """These records as rows of a file, one per line."""
    ignored: Counter[str] = Counter()
    rows = tuple(parse(line, record, ignored) for line, record in enumerate(records, start=1))
    return Dataset("rows.jsonl", rows, len(rows), (), 0, ignored)
