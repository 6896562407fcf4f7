"""The operator over any backend of these tests: python -m backends.serve Job

A program of its own, because the product has no such option.
"""

from __future__ import annotations

import asyncio
import sys

from backends.indexed_job import IndexedJobs
from finetune_operator import logs
from finetune_operator.__main__ import run
from finetune_operator.settings import Settings
from finetune_plan.backends import BACKENDS
from finetune_plan.backends.protocol import Backend

EVERY: dict[str, Backend] = {backend.kind: backend for backend in (*BACKENDS, IndexedJobs())}

if __name__ == "__main__":
    logs.configure("debug")
    asyncio.run(run(Settings(), EVERY[sys.argv[1]]))
