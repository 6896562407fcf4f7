"""`make flake`: repeats tests beside two busy processes, and names each that was not green every time.

A test that passes alone and fails on a busy machine depends on time: on a threshold in seconds, or on an order.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

BUSY = 2


@contextmanager
def busy(count: int = BUSY) -> Iterator[None]:
    """Processes that compute all the time."""
    command = [sys.executable, "-c", "while True: pass"]
    children = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def red(report: Path) -> list[str]:
    """Tests that failed, by a JUnit report of pytest."""
    cases = ElementTree.parse(report).iter("testcase")
    return [_name(case) for case in cases if case.find("failure") is not None or case.find("error") is not None]


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname')}::{case.get('name')}"


def repeat(times: int, arguments: Sequence[str]) -> Counter[str]:
    """How often each test was red; a pytest that ended without a test's verdict counts by itself."""
    found: Counter[str] = Counter()
    with busy(), tempfile.TemporaryDirectory() as folder:
        for number in range(1, times + 1):
            report = Path(folder) / f"{number}.xml"
            command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *arguments]
            code = subprocess.run(command, check=False).returncode
            failed = red(report) if report.exists() else []
            found.update(set(failed) or ({f"pytest ended with code {code}"} if code else set()))
            print(f"flake: {number} of {times}: code {code}, red: {len(failed)}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="flake", description=__doc__)
    parser.add_argument("-n", type=int, default=3, help="how often")
    parser.add_argument("arguments", nargs="*", help="pytest's, after --")
    given = parser.parse_args()
    found = repeat(given.n, given.arguments)
    for name, count in found.most_common():
        print(f"flake: red {count} of {given.n} times: {name}")
    if not found:
        print(f"flake: green {given.n} times")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
