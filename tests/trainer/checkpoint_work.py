"""What ranks do in the tests of checkpoints: make a state, save it, load it."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from finetune_trainer import checkpoint, snapshot
from finetune_trainer.collectives import rank, world_size
from finetune_trainer.files import DISK, Files
from trainer.failpoints import Failing, Full, die


def tensors(seed: int) -> dict[str, Any]:
    """A state with what a run has: nested names with dots, matrices, a scalar, an odd and an empty tensor."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "parameters": {
            "layers.0.weight": torch.randn(6, 4, generator=generator),
            "layers.0.bias": torch.randn(5, generator=generator),
        },
        "moments": {"layers.0.weight": torch.randn(6, 4, generator=generator).to(torch.bfloat16)},
        "step": torch.tensor(float(seed)),
        "nothing": torch.empty(0),
    }


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether two states are equal bit by bit."""
    return left.keys() == right.keys() and all(
        same(value, right[name]) if isinstance(value, dict) else torch.equal(value, right[name])
        for name, value in left.items()
    )


def save(output: Path, step: int, *, keep: int = 2, files: Files = DISK) -> None:
    state = sharded(tensors(step)) if world_size() > 1 else tensors(step)
    checkpoint.save(output, step, snapshot.take(state, {"step": step}), keep=keep, protect=set(), files=files)


def save_shards_and_scalars(output: Path) -> None:
    state = sharded({"weight": torch.randn(6, 4)} | {name: torch.tensor(1.0) for name in "abc"})
    checkpoint.save(output, 20, snapshot.take(state, {}), keep=1, protect=set())


def save_dying(output: Path, step: int, victim: int, at: int, after: bool) -> None:
    """Save, and die at the given operation on rank `victim`."""
    save(output, step, keep=1, files=Failing(at if rank() == victim else 0, after=after))


def prepare(output: Path) -> Path:
    """An output with two checkpoints, what a crash left of a third, and one that was renamed but not marked."""
    output.mkdir()
    for step in (10, 20):
        save(output, step)
    folders = output / "checkpoints"
    shutil.copytree(folders / "step-00000020", folders / "step-00000030")
    (folders / "step-00000030" / "COMPLETE").unlink()
    shutil.copytree(folders / "step-00000020", folders / ".tmp-step-00000025")
    return output


def after_the_crash(output: Path) -> int:
    """Check that the output continues from step 20 or 30 and can be saved to; return which."""
    newest = checkpoint.latest(output)
    assert newest in (20, 30)
    assert same(load(output, newest), tensors(newest))
    save(output, 40, keep=1)
    assert checkpoint.latest(output) == 40
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000040"]
    return newest


def die_everywhere(folder: Path) -> tuple[Counter[str], list[int]]:
    """Save step 30, killed before and after each operation in turn.

    Returns the operations there are, by kind, and the newest valid checkpoint after each death.
    """
    start = prepare(folder / "start")
    counted = count_operations(shutil.copytree(start, folder / "counted"), 30)
    found = []
    for at in range(1, counted.total() + 1):
        for after in (False, True):
            output = shutil.copytree(start, folder / f"{at}-{after}")
            die(partial(save_dying, output, 30, 0, at, after))
            found.append(after_the_crash(output))
    return counted, found


def count_operations(output: Path, step: int) -> Counter[str]:
    return Counter(kind for kind, _ in operations(output, step))


def operations(output: Path, step: int) -> list[tuple[str, Path]]:
    """What a save does to the disk, in order."""
    files = Failing()
    save(output, step, keep=1, files=files)
    return files.log


def save_on_full_rank(output: Path, step: int, victim: int, pattern: str) -> None:
    save(output, step, files=Full(pattern) if rank() == victim else DISK)


def save_apart(folder: Path, step: int) -> None:
    """Every rank has an output of its own under the same name, as on nodes without shared storage."""
    output = folder / f"node-{rank()}"
    output.joinpath("checkpoints", f".tmp-step-{step:08d}").mkdir(parents=True)
    save(output, step)


def load(output: Path, step: int) -> dict[str, Any]:
    """Load into zeros; return the full, unsharded state."""
    state = tensors(0)
    state = sharded(state) if world_size() > 1 else state
    extra = checkpoint.load(output, step, state)
    assert extra == {"step": step}
    return unsharded(state)


def sharded(state: dict[str, Any]) -> dict[str, Any]:
    """Matrices sharded over all ranks as FSDP2 does (rows), everything else the same on each rank."""
    mesh = init_device_mesh("cpu", (world_size(),))
    return _map(state, lambda t: distribute_tensor(t, mesh, [Shard(0)]) if t.dim() == 2 else t)


def unsharded(state: dict[str, Any]) -> dict[str, Any]:
    return _map(state, lambda t: t.full_tensor() if isinstance(t, DTensor) else t)


def _map(state: dict[str, Any], change: Any) -> dict[str, Any]:
    return {n: _map(v, change) if isinstance(v, dict) else change(v) for n, v in state.items()}


def draw() -> list[float]:
    """The next number of each generator."""
    return [random.random(), random.gauss(0, 1), np.random.standard_normal(), torch.rand(()).item()]


def save_and_draw(output: Path, step: int) -> list[float]:
    """Save in the middle of a stream of random numbers; return those that come next."""
    seed = 100 + rank()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    random.gauss(0, 1)  # leaves half a pair behind, which is state too
    np.random.standard_normal()
    save(output, step)
    return draw()


def load_and_draw(output: Path, step: int) -> list[float]:
    load(output, step)
    return draw()
