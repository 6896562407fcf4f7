"""State of the random number generators of one rank, as tensors, so that dropout continues after a resume."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def capture() -> dict[str, Tensor]:
    """State of Python's, numpy's, torch's CPU and, if it is in use, this rank's CUDA generator."""
    version, state, gauss = random.getstate()
    of_numpy = np.random.get_state(legacy=False)
    assert (version, of_numpy["bit_generator"]) == (3, "MT19937")
    states = {
        "python.words": torch.tensor(state, dtype=torch.int64),
        "python.gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy.key": torch.tensor(of_numpy["state"]["key"].astype(np.int64)),
        "numpy.position": torch.tensor([of_numpy["state"]["pos"], of_numpy["has_gauss"]]),
        "numpy.gauss": torch.tensor(of_numpy["gauss"], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if _cuda_in_use():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore(states: Mapping[str, Tensor]) -> None:
    """Restore the state returned by `capture`. A CUDA state is restored only if CUDA is in use."""
    gauss = states["python.gauss"].tolist()
    random.setstate((3, tuple(states["python.words"].tolist()), gauss[0] if gauss else None))
    position, has_gauss = states["numpy.position"].tolist()
    key = states["numpy.key"].numpy().astype(np.uint32)
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": key, "pos": position},
            "has_gauss": has_gauss,
            "gauss": states["numpy.gauss"].item(),
        }
    )
    torch.set_rng_state(states["torch"])
    if "cuda" in states and _cuda_in_use():
        torch.cuda.set_rng_state(states["cuda"])


def derive(states: Mapping[str, Tensor], rank: int) -> None:
    """Seed a rank that has no saved state, deterministically from rank 0's state."""
    material = b"".join(states[name].numpy().tobytes() for name in sorted(states))
    seed = int.from_bytes(hashlib.sha256(material + rank.to_bytes(8, "little")).digest()[:4], "little")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
