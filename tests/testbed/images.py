"""Our images, built from their own Dockerfiles by buildah on a base by debootstrap, and put into containerd.

Everything lies in the user's cache: a layer that was built or imported once is never built or copied again. Both
keep layers under the hash of their content, so what a containerd needs is what it does not have yet.
"""

import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from testbed.api import Json
from testbed.machine import Machine, MachineError
from testbed.packages import MissingError, ensure_packages

ROOT = Path(__file__).resolve().parents[2]
TRAINER = "ghcr.io/finetune-operator/trainer:0.1.0"
OPERATOR = "ghcr.io/finetune-operator/operator:0.1.0"
BASE = "localhost/base:testbed"
"""Debian with Python, as the Dockerfiles' own base has it; also the sandbox of every pod."""
DOCKERFILES = {TRAINER: "trainer-image/Dockerfile", OPERATOR: "operator/Dockerfile"}
SUITE = "bookworm"
INCLUDE = "python3,python3-venv,python3-dev,ca-certificates"
LARGE = 50 << 20
FIRST_GB, LATER_GB = 25, 3
"""Free disk that a build needs: with an empty cache, and with one that was filled before."""
NAME = "org.opencontainers.image.ref.name"
"""Annotation that an image layout is searched by."""
PIP = {"cert", "default-timeout", "extra-index-url", "index-url", "proxy", "trusted-host"}
"""Settings of pip that say how to reach an index."""


class ImageError(Exception):
    """An image could not be built; the message carries the end of the builder's words."""


@dataclass(frozen=True)
class Images:
    """A store of images; one process uses it at a time."""

    folder: Path

    @property
    def containerd(self) -> Path:
        """The root of the containerd that load() fills: it keeps its images from run to run."""
        return self.folder / "containerd"

    @property
    def layout(self) -> Path:
        """An OCI image layout: what was built last, in the form that can be copied."""
        return self.folder / "layout"

    def build(self) -> None:
        """Build what is not built yet; ImageError."""
        self._base()
        for name, dockerfile in DOCKERFILES.items():
            with _secrets() as secrets:
                command = ["bud", "--layers", "--runtime=runc", "--network=host", f"--build-arg=BASE={BASE}"]
                self._buildah(*command, *secrets, f"--file={dockerfile}", f"--tag={name}", ".")
        self._buildah("rmi", "--prune")
        for name in (BASE, *DOCKERFILES):
            # Not compressed: then a layer has the same hash here, in the builder and in containerd.
            source = f"containers-storage:[overlay@{self.folder / 'buildah'}+{self.folder / 'buildah-run'}]{name}"
            _run("skopeo", "copy", "--dest-oci-accept-uncompressed-layers", source, f"oci:{self.layout}:{name}")
        self._prune()

    def load(self, machine: Machine) -> None:
        """Copy the images into the containerd of a machine; of their layers, those that it lacks.

        Twice if need be: the names of images move to the new ones first, and containerd may then collect a layer of
        the old ones on which a new layer is about to be unpacked. The second time nothing moves.
        """
        try:
            self._import(machine)
        except MachineError:
            self._import(machine)
        self._share()

    def _import(self, machine: Machine) -> None:
        ctr = ["ctr", "--namespace=k8s.io"]
        held = set(machine.run([*ctr, "content", "ls", "--quiet"]).split())
        with TemporaryDirectory(dir=self.folder) as folder:
            archive = Path(folder) / "images.tar"
            self._pack(archive, held)
            machine.run([*ctr, "images", "import", archive])

    def _base(self) -> None:
        """Built once for its list of packages; `debootstrap` knows where packages come from."""
        label = f"key={hashlib.sha256(f'{SUITE} {INCLUDE} {_BASE_FILE}'.encode()).hexdigest()[:12]}"
        if self._buildah("images", "--quiet", f"--filter=label={label}").strip():
            return
        with TemporaryDirectory(dir=self.folder) as folder:
            context = Path(folder)
            _run("debootstrap", "--variant=minbase", f"--include={INCLUDE}", SUITE, f"{folder}/root")
            shutil.rmtree(context / "root" / "var" / "cache" / "apt")
            (context / "Dockerfile").write_text(_BASE_FILE)
            self._buildah("bud", f"--label={label}", f"--tag={BASE}", folder)

    def _buildah(self, *arguments: str) -> str:
        folders = [f"--root={self.folder / 'buildah'}", f"--runroot={self.folder / 'buildah-run'}"]
        return _run("buildah", *folders, "--storage-driver=overlay", *arguments)

    def _index(self) -> list[Json]:
        """The manifests of the layout, by the names under which they were pushed."""
        manifests = json.loads((self.layout / "index.json").read_text())["manifests"]
        return [entry for entry in manifests if NAME in entry.get("annotations", {})]  # else: of an earlier build

    def _blobs(self) -> set[str]:
        """Digests of all that belongs to the images of the layout."""
        found = set()
        for entry in self._index():
            manifest = json.loads(self._blob(entry["digest"]).read_text())
            found |= {entry["digest"], manifest["config"]["digest"], *(each["digest"] for each in manifest["layers"])}
        return found

    def _blob(self, digest: str) -> Path:
        return self.layout / "blobs" / digest.replace(":", "/")

    def _pack(self, archive: Path, held: set[str]) -> None:
        """An archive that `ctr images import` reads, without the blobs that are held already."""
        index: Json = {"schemaVersion": 2, "manifests": self._index()}
        for entry in index["manifests"]:
            entry["annotations"] = {"io.containerd.image.name": entry["annotations"][NAME]}
        with tarfile.open(archive, "w") as tar:
            for name, document in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index)):
                data = json.dumps(document).encode()
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            for digest in sorted(self._blobs() - held):
                tar.add(self._blob(digest), f"blobs/{digest.replace(':', '/')}")

    def _share(self) -> None:
        """Gigabytes need not lie here twice: the layout's large blobs become containerd's own."""
        store = self.containerd / "io.containerd.content.v1.content" / "blobs"
        for digest in self._blobs():
            ours, theirs = self._blob(digest), store / digest.replace(":", "/")
            if ours.stat().st_size > LARGE and theirs.exists() and not ours.samefile(theirs):
                ours.unlink()
                ours.hardlink_to(theirs)

    def _prune(self) -> None:
        """Remove what belonged to earlier builds."""
        index = {"schemaVersion": 2, "manifests": self._index()}
        (self.layout / "index.json").write_text(json.dumps(index))
        wanted = {self._blob(digest) for digest in self._blobs()}
        for path in (self.layout / "blobs" / "sha256").iterdir():
            if path not in wanted:
                path.unlink()


_BASE_FILE = """
FROM scratch
COPY root /
CMD ["sleep", "infinity"]
"""


@contextmanager
def images() -> Iterator[Images]:
    """The store in the user's cache, for us alone until the end of the block, with everything built."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "finetune-operator" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        _wait_for_lock(lock)
        store = Images(folder)
        require_disk(folder, shutil.disk_usage(folder).free, filled=store.containerd.exists())
        store.build()
        yield store


def require_disk(folder: Path, free: int, *, filled: bool) -> None:
    """Raise ImageError if a build would fill the disk; `free` is in bytes."""
    needed = LATER_GB if filled else FIRST_GB
    if free < needed * 10**9:
        raise ImageError(
            f"images need {needed} GB of disk at {folder}, and {free / 10**9:.1f} GB are free: "
            "free some, or set XDG_CACHE_HOME to a folder on a larger disk"
        )


def _wait_for_lock(lock: IO[str]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.stderr.write("testbed: another run uses the images (make e2e or make cluster); waiting until it ends\n")
        fcntl.flock(lock, fcntl.LOCK_EX)


@contextmanager
def _secrets() -> Iterator[list[str]]:
    """This machine's way to its package index, as the Dockerfiles take it: pip's settings and the authority."""
    listed = subprocess.run(["python3", "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    found = dict(line.split("=", 1) for line in listed.stdout.splitlines())
    settings = {key: value.strip("'") for name, value in found.items() if (key := name.rpartition(".")[2]) in PIP}
    with TemporaryDirectory() as folder:
        flags = []
        if authority := settings.get("cert"):
            settings["cert"] = "/run/secrets/ca"
            flags.append(f"--secret=id=ca,src={authority}")
        file = Path(folder) / "pip.conf"
        file.write_text("\n".join(["[global]", *(f"{name} = {value}" for name, value in settings.items())]) + "\n")
        file.chmod(0o600)
        yield [*flags, f"--secret=id=pip,src={file}"]


def main() -> int:
    """Build everything and say where it lies; 2 where something is missing here."""
    try:
        ensure_packages()
        with images() as store:
            sys.stdout.write("".join(f"{name}\n" for name in DOCKERFILES) + f"in {store.folder}\n")
    except (ImageError, MissingError) as error:
        sys.stderr.write(f"testbed: {error}\n")
        return 2
    return 0


def _run(*command: str) -> str:
    # In mounts of its own: buildah and skopeo leave one behind.
    apart = ["unshare", "--mount", *command]
    done = subprocess.run(apart, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise ImageError(f"{' '.join(command)} ended with {done.returncode}:\n{tail}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
