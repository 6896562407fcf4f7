"""Every URI that was accepted has a place in the pod, and the trainer can read what it is told there."""

from __future__ import annotations

import pytest

from api.test_uris import TABLE, drawn, refusal_of
from finetune_api.validation import uris
from finetune_api.validation.uris import Scheme, Use
from finetune_plan.mounts import Mount, mount

ITSELF = {uris.MODEL: {Scheme.PATH, Scheme.HUB}, uris.ROWS: {Scheme.PATH}, uris.OUTPUT: {Scheme.PATH}}
"""What the trainer reads and writes without a volume: everything else must be a path by then."""


@pytest.mark.parametrize("use", ITSELF, ids=lambda use: use.phrase)
def test_what_was_accepted_is_mounted_or_read_by_the_trainer_itself(use: Use) -> None:
    texts = [text for text in [*TABLE, *map(drawn, range(5000))] if not refusal_of(use, text)]
    assert len(texts) > 200
    for text in texts:
        there = mount(text, use)
        assert use.parse(there.path).scheme in ITSELF[use], text
        assert ".." not in there.path.split("/") or not there.claim, text


@pytest.mark.parametrize(
    ("use", "uri", "expected"),
    [
        (uris.MODEL, "org/name@v2", Mount("org/name@v2")),
        (uris.MODEL, "pvc://models", Mount("/mnt/claims/models", claim="models")),
        (uris.ROWS, "pvc://rows/a/b.jsonl", Mount("/mnt/claims/rows/a/b.jsonl", claim="rows")),
        (uris.ROWS, "configmap://rows/b.jsonl", Mount("/mnt/configmaps/rows/b.jsonl", config_map="rows")),
        (uris.OUTPUT, "pvc://models/out/", Mount("/mnt/claims/models/out", claim="models")),
        (uris.OUTPUT, "out", Mount("out")),
    ],
    ids=str,
)
def test_a_uri_has_its_place(use: Use, uri: str, expected: Mount) -> None:
    assert mount(uri, use) == expected
