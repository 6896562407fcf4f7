"""What only a GPU can tell: parity with the CPU, waits, throughput and memory. `make gpu`; at most 10 minutes.

It needs one GPU and no network: models are of real shapes with random weights. It runs on the torch, transformers
and PEFT that it finds, whose versions it prints, so it also runs where the locks cannot be installed. The exit code
is 1 if a figure is beyond its limit.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
import warnings

import peft
import torch
import transformers

from bench.figures import machine

from . import parity, runs, speed, waiting

PARTS = {"waiting": waiting.figures, "parity": parity.figures, "speed": speed.figures, "runs": runs.figures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one part instead of all")
    only = parser.parse_args().only
    if not torch.cuda.is_available():
        print("error: torch sees no GPU on this machine; make gpu needs one", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore", category=FutureWarning)
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    print(
        f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"peft {peft.__version__}\n{machine()}, {time.strftime('%d %B %Y')}",
        flush=True,
    )
    missed = 0
    for part in [only] if only else PARTS:
        began = time.monotonic()
        try:
            for figure in PARTS[part](device):
                print(figure, flush=True)
                missed += figure.missed
        except Exception:  # noqa: BLE001 - a GPU is lent by the minute: the other parts run all the same
            traceback.print_exc()
            missed += 1
        print(f"({part}: {time.monotonic() - began:.0f} s)", flush=True)
    print(f"Missed: {missed}." if missed else "All limits are kept.")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
