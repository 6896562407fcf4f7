"""`python -m finetune_operator` with settings for tests."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from builders import Json
from testbed.process import Process, free_port

TESTS = str(Path(__file__).parents[1])
"""Where a program of the tests finds the others."""
SOURCES = ("operator/src", "crds/src", "trainer-image/src")
SOURCE = "OPERATOR_SRC"
"""Environment variable: another tree whose operator the tests drive, to see that a test is red on it."""
QUICK = {"PROGRESS_SECONDS": "1", "BACKOFF_SECONDS": "0.2", "HTTP_HOST": "127.0.0.1", "LOG_LEVEL": "debug"}
"""Settings of the operator in tests, where nothing else is said."""
HANGS_S = 120
"""A process that still runs so long after SIGTERM will not end by itself. The operator's own limit is 25 s."""


class OperatorProcess(Process):
    """`python -m finetune_operator`, ready when it has listed everything."""

    def __init__(
        self,
        kubeconfig: Path,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        program: Sequence[str] = ("-m", "finetune_operator"),
    ) -> None:
        self.port = free_port()
        words = QUICK | {"KUBECONFIG": str(kubeconfig), "HTTP_PORT": str(self.port)} | dict(settings or {})
        env = {k: v for k, v in os.environ.items() if not k.startswith("FINETUNE_OPERATOR_")}
        env |= {f"FINETUNE_OPERATOR_{k}": v for k, v in words.items()} | {"PYTHONPATH": _path()}
        command = [sys.executable, *program]
        ready = lambda: self.answer("readyz")[0] == 200  # noqa: E731
        super().__init__(command, folder / "operator.log", ready=ready, env=env, outlived=True)

    def end(self) -> int:
        """Tell it to end; its exit code, once it has ended by itself."""
        self.signal(signal.SIGTERM)
        return self.wait_ended(HANGS_S)

    def stop(self, grace_s: float = HANGS_S) -> None:
        """Likewise at the end of a `with`: SIGKILL would hide an end that takes too long."""
        super().stop(grace_s)

    def answer(self, path: str) -> tuple[int, str]:
        """HTTP status (0: no answer) and body of one of the operator's own pages."""
        url = f"http://127.0.0.1:{self.port}/{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def lines(self) -> list[Json]:
        """The log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


def _path() -> str:
    other = os.environ.get(SOURCE)
    return os.pathsep.join([TESTS, *(f"{other}/{folder}" for folder in SOURCES if other)])
