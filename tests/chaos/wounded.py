"""The operator itself, and a signal that takes one of its watches away: python wounded.py pods.v1

A program of its own, because the product has no such switch and nobody can do it from outside.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from finetune_operator import logs
from finetune_operator.__main__ import run
from finetune_operator.settings import Settings
from finetune_plan.backends import DEFAULT as BACKEND


async def main(resource: str) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, cancel, resource)
    await run(Settings(), BACKEND)


def cancel(resource: str) -> None:
    """Cancel the task of one watch."""
    [task] = [t for t in asyncio.all_tasks() if t.get_name().startswith(f"watcher for {resource}")]
    task.cancel()


if __name__ == "__main__":
    logs.configure("debug")
    asyncio.run(main(sys.argv[1]))
