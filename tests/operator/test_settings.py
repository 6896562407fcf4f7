"""Settings that make no sense end the process before it has done anything, and say why."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from finetune_operator.settings import Settings

WRONG = {
    "a heartbeat that nobody watches": ({"WATCH_NAMESPACE": "team"}, "Set both to the same namespace."),
    "no workers": ({"WORKERS": "0"}, "greater than or equal to 1"),
    "an unknown level": ({"LOG_LEVEL": "loud"}, "'debug', 'info', 'warning' or 'error'"),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG)
def test_wrong_settings_end_the_process_with_code_2(given: dict[str, str], said: str) -> None:
    environment = os.environ | {f"FINETUNE_OPERATOR_{name}": value for name, value in given.items()}
    command = [sys.executable, "-m", "finetune_operator"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr


def test_null_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chart's values may say null where a setting has no default."""
    monkeypatch.setenv("FINETUNE_OPERATOR_TTL_SECONDS_AFTER_FINISHED", "null")
    assert Settings().ttl_seconds_after_finished is None
