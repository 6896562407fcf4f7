"""A checkpoint that another version of Python and torch wrote, and the program that wrote it:

    PYTHONPATH=crds/src:trainer-image/src:tests python3.12 -m trainer.checkpoint_fixture

It needs torch, numpy, pydantic and safetensors. Write it again when the format of checkpoints changes.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from finetune_trainer import checkpoint, snapshot

FOLDER = Path(__file__).parent / "checkpoint_fixture"


def tensors(scale: int) -> dict[str, Any]:
    """A state that needs no random numbers, which differ between versions."""
    numbers = torch.arange(24.0).reshape(6, 4) * scale
    return {
        "parameters": {"weight": numbers, "bias": numbers[0].to(torch.bfloat16)},
        "moments": {"weight": numbers.to(torch.uint8)},
        "step": torch.tensor(20.0 * scale),
        "nothing": torch.empty(0),
    }


def versions() -> dict[str, str]:
    """Python and torch that run this."""
    return {"python": platform.python_version(), "torch": str(torch.__version__)}


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    checkpoint.save(FOLDER, 20, snapshot.take(tensors(1), versions()), keep=1, protect=set())
