"""Main program of the transfer pod: wait until nobody has used the pod for so many seconds. Argument: seconds."""

import signal
import sys
import time
from pathlib import Path

ALIVE = Path("/tmp/finetune-alive")  # noqa: S108 - a volume of the pod's own
POLL_SECONDS = 1.0

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as process 1 it would otherwise not hear it
    patience = float(sys.argv[1])
    ALIVE.touch()
    while time.time() - ALIVE.stat().st_mtime < patience:
        time.sleep(POLL_SECONDS)
