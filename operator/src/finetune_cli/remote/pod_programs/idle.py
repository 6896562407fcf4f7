"""Main program of the transfer pod: exits when the pod has been idle for a number of seconds. Argument: seconds."""

import signal
import sys
import time
from pathlib import Path

ALIVE = Path("/tmp/finetune-alive")  # noqa: S108 - a volume of the pod's own
POLL_SECONDS = 1.0

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # process 1 ignores it by default
    idle_seconds = float(sys.argv[1])
    ALIVE.touch()
    while time.time() - ALIVE.stat().st_mtime < idle_seconds:
        time.sleep(POLL_SECONDS)
