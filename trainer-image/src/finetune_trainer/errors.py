"""Every way a run ends that has a name. Raised wherever the trainer finds it out; __main__ turns it into an
exit code and the final report.

A message names the key or path, the value, the reason and the remedy: it is all the user gets to read.
"""

from __future__ import annotations

from typing import ClassVar

from finetune_api.runtime.exits import Exit


class RunError(Exception):
    """A failure with a name. The message is the whole of it: one argument, so that it survives pickling."""

    exit: ClassVar[Exit] = Exit.CRASHED


class ConfigRefused(RunError):
    exit = Exit.CONFIG_REFUSED


class DataRefused(RunError):
    exit = Exit.DATA_REFUSED


class ModelRefused(RunError):
    exit = Exit.MODEL_REFUSED


class OutputRefused(RunError):
    exit = Exit.OUTPUT_REFUSED


class Unsupported(RunError):
    exit = Exit.UNSUPPORTED


class NonFinite(RunError):
    exit = Exit.NON_FINITE


class StorageFailed(RunError):
    exit = Exit.STORAGE_FAILED


class PeerLost(RunError):
    exit = Exit.PEER_LOST
