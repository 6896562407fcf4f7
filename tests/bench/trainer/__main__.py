"""What a real small model tells of the trainer on a CPU: `make bench-trainer`; 30 minutes without other load.

The model is that of the quickstart, fetched if it is not in the cache. The exit code is 1 if a figure is beyond its
limit.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
import transformers

from bench.figures import machine, tell

from . import formats, lora, optimizers, published, qlora, saves

PARTS = {
    "published": published.figures,
    "saves": saves.figures,
    "lora": lora.figures,
    "qlora": qlora.figures,
    "formats": formats.figures,
    "optimizers": optimizers.figures,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one part instead of all")
    only = parser.parse_args().only
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"{machine()}, {time.strftime('%d %B %Y')}", flush=True)
    return tell({name: PARTS[name] for name in ([only] if only else PARTS)})


if __name__ == "__main__":
    sys.exit(main())
