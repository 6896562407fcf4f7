"""A control plane on which jobs could run, and which no operator serves yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from finetune_api.codegen.crd import crd
from testbed.api import Json
from testbed.control_plane import ControlPlane
from testbed.training_operator import pytorchjob_crd, start_training_operator


@contextmanager
def unserved(
    folder: Path, *kinds: Path, scheduler: bool = False, flags: Sequence[str] = ()
) -> Iterator[ControlPlane]:
    """With jobs, PyTorchJobs, their Training Operator, and more kinds if given."""
    crds: list[Path | Json] = [pytorchjob_crd(), crd(), *kinds]
    with ControlPlane(folder, crds=crds, controllers=True, scheduler=scheduler, flags=flags) as plane:
        start_training_operator(plane)
        yield plane
