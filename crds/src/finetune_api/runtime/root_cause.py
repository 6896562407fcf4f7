"""Which of several failures is the root cause of a run that failed: the earliest that is not a lost peer.

Asked in three places, about different things: the trainer's launcher about the ranks of its node, the plan about
the pods of a run, `finetune run` about its replicas.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from .exits import Exit

if TYPE_CHECKING:
    from .report import FinalReport

SECONDARY = frozenset({int(Exit.PEER_LOST)})
"""Exit codes of failures that follow from another one."""


def precedence(
    code: int, report: FinalReport | None, *, secondary: Collection[int] = SECONDARY
) -> tuple[bool, float]:  # fmt: skip
    """Sort key of a failure by its exit code and final report: the root cause comes first.

    A failure without a report comes before those with one: the process ended before it could write a report.
    """
    return code in secondary, 0.0 if report is None else report.cause.time if report.cause else report.time
