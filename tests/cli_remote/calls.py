"""`finetune` as a process of its own, and as the parts that tests build on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cli.calls import JOB, ROW

FINETUNE = (sys.executable, "-m", "finetune_cli")
TIMEOUT_S = 60


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

    def until(self, text: str, timeout_s: float = 30) -> str:
        """The first line with that text."""
        with self._news:
            assert self._news.wait_for(lambda: any(text in line for line in self.lines), timeout_s), self.lines
            return next(line for line in self.lines if text in line)

    def ended(self, timeout_s: float = 30) -> int:
        return self.process.wait(timeout_s)

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        self.process.send_signal(number)


@dataclass(frozen=True)
class Console:
    """Calls of one person: their kubeconfig, namespace and folder."""

    kubeconfig: Path
    namespace: str
    folder: Path

    def __call__(self, *arguments: str, stdin: str | None = None, anywhere: bool = False) -> Done:
        done = subprocess.run(
            self._command(arguments, anywhere=anywhere), input=stdin, env=self._environment(), cwd=self.folder,
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def start(self, *arguments: str) -> Iterator[Running]:
        """A call that goes on, both outputs in one; it is ended with the block."""
        with subprocess.Popen(
            self._command(arguments), env=self._environment() | {"PYTHONUNBUFFERED": "1"}, cwd=self.folder,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
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
        text += "  output: {uri: pvc://models/out}\n"
        for old, new in replacements:
            assert old in text, f"{old!r} is not in the job"
            text = text.replace(old, new)
        (self.folder / name).write_text(text)
        return name

    def rows(self, count: int = 3, name: str = "rows.jsonl") -> str:
        (self.folder / name).write_text(ROW * count)
        return name

    def _command(self, arguments: tuple[str, ...], *, anywhere: bool = False) -> list[str]:
        where = [] if anywhere else ["-n", self.namespace]
        return [*FINETUNE, *arguments, *where]

    def _environment(self) -> dict[str, str]:
        own = {"KUBECONFIG": str(self.kubeconfig), "HOME": str(self.folder), "NO_COLOR": "1"}
        return {k: v for k, v in os.environ.items() if not k.startswith("KUBERNETES_")} | own
