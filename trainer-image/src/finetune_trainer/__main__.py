"""The program of a pod: `python -m finetune_trainer`, or `finetune-trainer`. What it does is in node.py.

Process 1 of a container gets no signal that it does not handle yet. So it handles SIGTERM before it imports the rest,
which takes a second on a busy node: a pod deleted in that second would wait for its peers until its grace has passed.
"""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    signal.signal(signal.SIGTERM, _stop)
    from .node import run  # noqa: PLC0415 - see above

    sys.exit(run(os.environ))


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(os.EX_TEMPFAIL)  # Exit.STOPPED, which may be half imported


if __name__ == "__main__":
    main()
