"""Every node prepares its rows from the files that it sees, and these have to be the same files.

A path may lead to a disk of the node; a file may be rewritten, or a branch on the Hub may move, while pods start.
Such nodes would train on other rows than the run's order of rows says, or wait for steps that the others do not have.
Called by trainer.py before the output is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence

from .collectives import on_every_rank
from .errors import DataRefused, ModelRefused
from .handoff import ADAPTER, MODEL, TRAIN, VALIDATION, Handoff

_INPUTS = (
    (MODEL, ModelRefused, "the content of job.model is"),
    (ADAPTER, ModelRefused, "the content of training.lora.from is"),
    (TRAIN, DataRefused, "job.data: its rows, or the tokens that job.model makes of them, are"),
    (VALIDATION, DataRefused, "data.validation_path: its rows are"),
)
"""In the order in which one is the cause of a difference in the next."""


def require_same_inputs(handoff: Handoff) -> None:
    """Compare what the nodes have prepared with that of node 0, by its digests. Collective.

    Raises ModelRefused or DataRefused on every rank.
    """
    nodes = dict(on_every_rank(lambda: (handoff.node, handoff.digests)))
    for name, refusal, what in _INPUTS:
        differing = [node for node in sorted(nodes) if nodes[node].get(name) != nodes[0].get(name)]
        if differing:
            raise refusal(_message(what, differing))


def _message(what: str, differing: Sequence[int]) -> str:
    return (
        f"{what} not the same on node {', '.join(map(str, differing))} as on node 0; use files that all nodes share, "
        "do not change them while pods start, and pin the revision of a model of the Hub (org/name@revision); then "
        "start the job again"
    )
