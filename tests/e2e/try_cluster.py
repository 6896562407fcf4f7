"""`make cluster`: a cluster with a real node and our chart on this machine, until Ctrl-C.

The folder of the cluster is temporary. Namespaces, mounts, network and processes of the node end with this program.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from e2e.bed import FAILURES, Say, installed_operator, real_cluster
from e2e.team import Team
from testbed.build import program
from testbed.cluster import Cluster

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NAMESPACE = "default"
INSTRUCTIONS = """\

The cluster is ready. In another terminal, in this folder:

  export KUBECONFIG={kubeconfig} PATH={programs}:$PATH
  finetune submit docs/examples/cluster.yaml
  finetune watch small
  kubectl get ftj,pods

Files of the volume `shared` are in {volume}.
Ctrl-C here ends the cluster and removes all of it.
"""


def main() -> int:
    """Run the cluster until a signal; 2 if it does not start."""
    say = progress()
    try:
        with stopping(), TemporaryDirectory(prefix="finetune-cluster-") as folder, running(Path(folder), say) as team:
            sys.stdout.write(instructions(team.cluster.kubeconfig, linked_programs(team.cluster), team.volume))
            sys.stdout.flush()
            signal.pause()
    except KeyboardInterrupt:
        say("the cluster has ended")
        return 0
    except FAILURES as error:
        sys.stderr.write("\n".join([f"error: no cluster: {error}", *getattr(error, "__notes__", []), ""]))
        return 2
    return 0


@contextmanager
def running(folder: Path, say: Say) -> Iterator[Team]:
    """A cluster with the operator and, in its default namespace, all that a first job needs."""
    with real_cluster(folder, say) as bed:
        try:
            with installed_operator(bed.cluster, say):
                say("putting a small model on a volume")
                yield Team(bed.cluster, NAMESPACE, folder / "volume").furnished()
        finally:
            say("ending the cluster")


def instructions(kubeconfig: Path, programs: Path, volume: Path) -> str:
    """What to type next. `programs` is a folder for the PATH."""
    return INSTRUCTIONS.format(kubeconfig=kubeconfig, programs=programs, volume=volume)


def linked_programs(cluster: Cluster) -> Path:
    """A folder with kubectl as the cluster has it and `finetune` as this environment has it."""
    folder = cluster.folder / "bin"
    folder.mkdir()
    own = Path(sys.executable).parent
    for path in (program("kubectl"), own / "finetune", own / "kubectl-finetune"):
        (folder / path.name).symlink_to(path)
    return folder


def progress() -> Say:
    """Says each sentence with the seconds since the start."""
    started = time.monotonic()
    return lambda sentence: sys.stderr.write(f"{time.monotonic() - started:4.0f} s  {sentence}\n")


@contextmanager
def stopping() -> Iterator[None]:
    """The first signal ends the block; what comes while it ends is ignored, so that nothing is left behind."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in STOPS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, stop) for each in STOPS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


if __name__ == "__main__":
    sys.exit(main())
