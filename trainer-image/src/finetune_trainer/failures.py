"""Map an exception to an exit code and a final report.

Called by worker.py for a rank, and by node.py for failures before any rank is started. It does not import torch,
so torch's errors are recognised by class name and text.
"""

from __future__ import annotations

import re
import time
import traceback

from finetune_api.runtime.exits import MEANINGS, Exit
from finetune_api.runtime.report import Cause, FinalReport
from finetune_data import DatasetRefused
from finetune_tokens import TokenizerRefused

from .errors import RunError
from .files import storage_failure
from .outcome import failure

_HARDWARE = re.compile(
    r"uncorrectable ECC error|uncorrectable NVLink error|no CUDA-capable device is detected"
    r"|CUDA(?: error:)? unknown error|system not yet initialized|GPU is lost|GPU has fallen off the bus"
)
"""CUDA's and NVML's words for errors that a GPU, its link or its node causes and no program can (docs/adr/0030)."""
_BY_CLASS: dict[str, Exit] = {
    "OutOfMemoryError": Exit.OUT_OF_MEMORY,
    "MemoryError": Exit.OUT_OF_MEMORY,
    "DistBackendError": Exit.PEER_LOST,
    "DistNetworkError": Exit.PEER_LOST,
    "DistStoreError": Exit.PEER_LOST,
}
_BY_TEXT = (
    (re.compile(r"can't allocate memory|out of memory", re.IGNORECASE), Exit.OUT_OF_MEMORY),
    # gloo raises plain RuntimeErrors whose text begins with a path of its sources
    (re.compile(r"gloo/|Connection (closed|reset) by peer"), Exit.PEER_LOST),
)


def exit_code_of(error: BaseException) -> Exit:
    """The exit code for `error`; CRASHED for an unknown error, which is a bug."""
    error = storage_failure(error) or error
    if isinstance(error, RunError):
        return error.exit
    if isinstance(error, DatasetRefused):
        return Exit.DATA_REFUSED
    if isinstance(error, TokenizerRefused):
        return Exit.MODEL_REFUSED
    if isinstance(error, RuntimeError) and _HARDWARE.search(str(error)):  # NCCL's errors quote CUDA's
        return Exit.HARDWARE_FAILED
    named = _BY_CLASS.get(type(error).__name__)
    if named is None and isinstance(error, RuntimeError):
        named = next((code for text, code in _BY_TEXT if text.search(str(error))), None)
    return named or Exit.CRASHED


def report(error: BaseException, rank: int, node: int, step: int) -> FinalReport:
    """The final report of a run that failed with `error` after `step` steps."""
    error = storage_failure(error) or error
    code = exit_code_of(error)
    message = _message(error, code)
    return failure(code, message, Cause(rank=rank, node=node, time=time.time(), error=message), step)


def _message(error: BaseException, code: Exit) -> str:
    """The message for the user: of our own errors all of it, of others the first line and a generic remedy."""
    if isinstance(error, RunError | DatasetRefused | TokenizerRefused):
        return str(error)
    first = (str(error).splitlines() or [""])[0]
    if code is Exit.CRASHED:
        return f"{type(error).__name__}: {first}"
    detail = f"({first})" if first else ""
    return " ".join(filter(None, (MEANINGS[code].sentence, detail, MEANINGS[code].remedy)))


def trace(error: BaseException) -> str:
    """The traceback of an unknown error; empty for known failures, whose message is enough."""
    return "".join(traceback.format_exception(error)) if exit_code_of(error) is Exit.CRASHED else ""
