"""`finetune` as one person calls it: in this process, or as a process of its own where it goes on for long."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from click.testing import CliRunner

from cli.calls import JOB, ROW
from finetune_cli.main import cli

FINETUNE = (sys.executable, "-m", "finetune_cli")
PATIENCE_S = 180
"""For a call that hangs, not for one that is slow: on a busy machine an interrupted upload takes over 30 s to end."""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@dataclass
class Running:
    """A verb that goes on; its lines are collected as they come."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    _news: threading.Condition = field(default_factory=threading.Condition)

    def collect(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()

    def until(self, text: str, timeout_s: float = PATIENCE_S) -> str:
        """The first line with that text."""
        with self._news:
            assert self._news.wait_for(lambda: any(text in line for line in self.lines), timeout_s), self.lines
            return next(line for line in self.lines if text in line)

    def ended(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running; so far: {self.lines}") from None

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        self.process.send_signal(number)


@dataclass(frozen=True)
class Console:
    """Calls of one person: their kubeconfig, namespace and folder."""

    kubeconfig: Path
    namespace: str
    folder: Path

    def __call__(self, *arguments: str, stdin: str | None = None, anywhere: bool = False) -> Done:
        """A call in this process, which is quicker; `anywhere` leaves -n and --kubeconfig to the arguments."""
        own = [] if anywhere else ["-n", self.namespace, "--kubeconfig", str(self.kubeconfig)]
        with contextlib.chdir(self.folder):
            result = CliRunner().invoke(cli, [*arguments, *own], prog_name="finetune", input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    @contextmanager
    def start(self, *arguments: str) -> Iterator[Running]:
        """A call that goes on, both outputs in one; it is ended with the block."""
        # Whoever runs the tests in the background may have them ignore Ctrl-C, and so would all that they start.
        with subprocess.Popen(
            ["env", "--default-signal=INT", *FINETUNE, *arguments, "-n", self.namespace],
            env=self._environment(), cwd=self.folder, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            running = Running(process)
            reader = threading.Thread(target=running.collect, daemon=True)
            reader.start()
            try:
                yield running
            finally:
                process.kill()
                reader.join(10)

    def job(self, *replacements: tuple[str, str], name: str = "job.yaml") -> str:
        """A file with the smallest job that runs on a cluster, changed in places."""
        text = JOB.replace("data: train.jsonl", "data: pvc://rows/train.jsonl")
        text = text.replace("{ephemeral: true}", "{uri: pvc://models/out}")
        for old, new in replacements:
            assert old in text, f"{old!r} is not in the job"
            text = text.replace(old, new)
        (self.folder / name).write_text(text)
        return name

    def rows(self, count: int = 3, name: str = "rows.jsonl", width: int = 1) -> str:
        """A file with rows; `width` is the length of each answer."""
        (self.folder / name).write_text(ROW.replace('"2"', f'"{"2" * width}"') * count)
        return name

    def _environment(self) -> dict[str, str]:
        """KUBECONFIG as people set it."""
        own = {"KUBECONFIG": str(self.kubeconfig), "HOME": str(self.folder), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
        return {k: v for k, v in os.environ.items() if not k.startswith("KUBERNETES_")} | own
