"""Known failures of a run, one class per exit code. node.py turns them into the exit code and the final report.

A message names the key or path, the value, the reason and the remedy: it is all that the user reads.
"""

from __future__ import annotations

from typing import ClassVar

from finetune_api.runtime.exits import Exit


class RunError(Exception):
    """A known failure. It has one argument, the message, so that it can be pickled."""

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


class SourceUnavailable(RunError):
    exit = Exit.SOURCE_UNAVAILABLE


class HardwareFailed(RunError):
    exit = Exit.HARDWARE_FAILED


class PeerLost(RunError):
    exit = Exit.PEER_LOST
