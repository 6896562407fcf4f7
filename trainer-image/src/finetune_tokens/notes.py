"""What a person should know about a prepared dataset, though nothing of it stops a run. Called by `prepare`."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_data import Dataset

from .chat import ChatTokenizer
from .template import NOW


def of(
    dataset: Dataset, tokenizer: ChatTokenizer, stops: tuple[int, ...], split: int, sequences: int, cut: int
) -> tuple[str, ...]:
    """One sentence for each thing worth knowing. `split` counts rows of several sequences, `cut` truncations."""
    return tuple(_all(dataset, tokenizer, stops, split, sequences, cut))


def _all(
    dataset: Dataset, tokenizer: ChatTokenizer, stops: tuple[int, ...], split: int, sequences: int, cut: int
) -> Iterator[str]:
    ends = tokenizer.turn_ends
    if cut:
        yield f"{cut} of {sequences} sequences were cut at the end to fit the sequence length"
    if split:
        yield f"the chat template rewrites earlier turns: {split} rows became several sequences each"
    if not tokenizer.stop_ids & set(stops):
        names, known = (", ".join(ends[i] for i in sorted(ids)) for ids in (stops, tokenizer.stop_ids))
        yield f"turns end with {names}, at which this model's configuration ({known or 'no eos'}) does not stop"
    unshown = sum(bool(row.tools) and not tokenizer.template_for(row).mentions("tools") for row in dataset.rows)
    if unshown:
        yield f"{unshown} rows declare tools, which the chat template does not show"
    unthought = sum(any(message.reasoning for message in row.messages) for row in dataset.rows)
    if unthought and not _shows_reasoning(tokenizer):
        yield f"{unthought} rows have reasoning, which the chat template does not show"
    if any(template.mentions("strftime_now") for template in tokenizer.templates.values()):
        yield f"the chat template writes the date; every row is given {NOW:%Y-%m-%d}"


def _shows_reasoning(tokenizer: ChatTokenizer) -> bool:
    names = ("reasoning_content", "reasoning", "thinking")
    return any(template.mentions(name) for template in tokenizer.templates.values() for name in names)
