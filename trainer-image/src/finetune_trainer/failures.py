"""From an exception to an exit code and a final report: the one place where failures get their name.

Called by worker.py for a rank and by __main__ for what fails before there are ranks. It imports no torch, so
torch's errors are known by their names and their text.
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
from .verdict import failure

_NAMED: dict[str, Exit] = {
    "OutOfMemoryError": Exit.OUT_OF_MEMORY,
    "MemoryError": Exit.OUT_OF_MEMORY,
    "DistBackendError": Exit.PEER_LOST,
    "DistNetworkError": Exit.PEER_LOST,
    "DistStoreError": Exit.PEER_LOST,
}
_TEXTS = (
    (re.compile(r"can't allocate memory|out of memory", re.IGNORECASE), Exit.OUT_OF_MEMORY),
    # gloo raises bare RuntimeErrors whose text begins with its own source file
    (re.compile(r"gloo/|Connection (closed|reset) by peer"), Exit.PEER_LOST),
)


def exit_of(error: BaseException) -> Exit:
    """The exit code that names `error`; CRASHED if it has no name, which makes it a bug."""
    if isinstance(error, RunError):
        return error.exit
    if isinstance(error, DatasetRefused):
        return Exit.DATA_REFUSED
    if isinstance(error, TokenizerRefused):
        return Exit.MODEL_REFUSED
    named = _NAMED.get(type(error).__name__)
    if named is None and isinstance(error, RuntimeError):
        named = next((code for text, code in _TEXTS if text.search(str(error))), None)
    return named or Exit.CRASHED


def report(error: BaseException, rank: int, node: int, step: int) -> FinalReport:
    """The final report of a run that `error` ended after `step` steps."""
    code = exit_of(error)
    message = _message(error, code)
    return failure(code, message, Cause(rank=rank, node=node, time=time.time(), error=message), step)


def _message(error: BaseException, code: Exit) -> str:
    """What the user reads. Our own errors say everything; of others, the first line and the usual remedy."""
    if isinstance(error, RunError | DatasetRefused | TokenizerRefused):
        return str(error)
    first = (str(error).splitlines() or [""])[0]
    if code is Exit.CRASHED:
        return f"{type(error).__name__}: {first}"
    return f"{MEANINGS[code].sentence} ({first}) {MEANINGS[code].remedy}"


def trace(error: BaseException) -> str:
    """The traceback, for failures without a name; empty for those whose message says it all."""
    return "".join(traceback.format_exception(error)) if exit_of(error) is Exit.CRASHED else ""
