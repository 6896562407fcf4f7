"""What only a GPU can tell: parity with the CPU, waits, throughput and memory. `make gpu`; at most 10 minutes.

It needs one GPU and no network: models are of real shapes with random weights. It runs on the torch, transformers
and PEFT that it finds, whose versions it prints, so it also runs where the locks cannot be installed. The exit code
is 1 if a figure is beyond its limit.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from functools import partial

import peft
import torch
import transformers

from bench.figures import machine, tell

from . import lora, parity, runs, shapes, speed, waiting

PARTS = {
    "waiting": waiting.figures,
    "lora": lora.figures,
    "parity": parity.figures,
    "speed": speed.figures,
    "runs": runs.figures,
}


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
    if not shapes.SHARDS:
        print("This torch is older than the locked one and lacks what FSDP2 needs: one process instead.", flush=True)
    return tell({name: partial(PARTS[name], device) for name in ([only] if only else PARTS)})


if __name__ == "__main__":
    sys.exit(main())
