"""The operator itself, and after SIGUSR1 something in it that does not end: python disobedient.py task|thread

A program of its own, because the product has no such switch and nobody can do it from outside.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from contextlib import suppress

from finetune_operator import logs
from finetune_operator.__main__ import run
from finetune_operator.settings import Settings
from finetune_plan import backends


async def task() -> None:
    """Loses one cancellation, as kopf's watches do when it meets the end of a stream."""
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    await asyncio.Event().wait()


async def thread() -> None:
    """Never comes back, as the resolver's threads may."""
    await asyncio.to_thread(threading.Event().wait)


async def main(what: str) -> None:
    tasks: list[asyncio.Task[None]] = []
    begin = lambda: tasks.append(asyncio.create_task({"task": task, "thread": thread}[what]()))  # noqa: E731
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, begin)
    await run(Settings(), backends.DEFAULT)


if __name__ == "__main__":
    logs.configure("debug")
    asyncio.run(main(sys.argv[1]))
