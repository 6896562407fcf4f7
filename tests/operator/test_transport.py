"""How long a request waits before its next attempt."""

from __future__ import annotations

import pytest

from finetune_operator.transport import LONGEST_RETRY_AFTER, _retry_after


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("1", 1), ("86400", LONGEST_RETRY_AFTER), ("9" * 400, LONGEST_RETRY_AFTER), ("Fri, 27 Nov 2026", 0), (None, 0)],
)
def test_a_server_is_given_the_pause_that_it_asks_for_up_to_a_limit(header: str | None, seconds: float) -> None:
    assert _retry_after(header) == seconds
