"""What a real node needs from the machine's own packages: installed where we are root on Debian, else named."""

import os
import shutil
import subprocess

# Each program, and the package of Debian and Ubuntu that brings it.
PACKAGES = {
    "buildah": "buildah",
    "containerd": "containerd",
    "debootstrap": "debootstrap",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "iptables": "iptables",
    "mount": "mount",
    "nsenter": "util-linux",
    "skopeo": "skopeo",
}


class MissingError(Exception):
    """Something that only the machine's owner can provide; the message names it."""


def ensure_packages() -> None:
    """Return once every program is there; MissingError with the names of those that are not."""
    if os.geteuid() != 0:
        raise MissingError(
            "a real node needs root: it makes namespaces, network interfaces and containers; run this as root"
        )
    wanted = _missing()
    if wanted and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *wanted]):
            subprocess.run(["apt-get", "--quiet", *command], env=environment, check=False, stdout=subprocess.DEVNULL)
    if wanted := _missing():
        tried = "apt-get did not install them" if shutil.which("apt-get") else "there is no apt-get to install them"
        raise MissingError(f"a real node needs these packages of Debian or Ubuntu, and {tried}: {' '.join(wanted)}")


def _missing() -> list[str]:
    return sorted({package for name, package in PACKAGES.items() if not shutil.which(name)})
