"""A real node: containerd, runc, kubelet and kube-proxy in a machine of their own, and CoreDNS for its pods.

Pods run here as on any cluster; they reach the API server at its ClusterIP and each other by name, and nothing
outside this machine: an air gap. Needs root; packages.py names what else.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from testbed.api import Json
from testbed.build import program
from testbed.cgroups import make_cgroups, remove_cgroups
from testbed.cluster import write_private
from testbed.control_plane import ControlPlane
from testbed.images import BASE, Images
from testbed.machine import Cable, Machine
from testbed.process import Process, listens
from testbed.watch import wait_for

NAME = "node-0"
PODS = "10.244.0.0/24"
DOMAIN = "cluster.local"
CGROUPS = "testbed"
CNI_BIN = "/usr/lib/cni"
SOCKET = "/run/containerd/containerd.sock"
CTR = ["ctr", "--namespace=k8s.io"]
# All fixed: the machine has its network to itself.
CONTAINERD_PORT, DNS_READY_PORT, PROXY_PORT, KUBELET_PORT = 1338, 8181, 10256, 10250
CONTAINERD = f"""
version = 2
root = "ROOT"
[grpc]
address = "{SOCKET}"
[metrics]
address = "ADDRESS:{CONTAINERD_PORT}"
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true  # runc dies of a sandbox's -998 where CAP_SYS_RESOURCE is missing
sandbox_image = "{BASE}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_BIN}"
conf_dir = "FOLDER/cni"
"""
COREFILE = f"""
{DOMAIN}:53 {{
  bind ADDRESS
  errors
  ready ADDRESS:{DNS_READY_PORT}
  kubernetes {{
    kubeconfig KUBECONFIG
    ttl 5
  }}
}}
.:53 {{
  bind ADDRESS
  template ANY ANY {{
    rcode NXDOMAIN
  }}
}}
"""


def api_server_flags(cable: Cable) -> list[str]:
    """Flags for ControlPlane: pods and the kubelet reach the API server over the cable, and it reaches them."""
    return [
        "--bind-address=0.0.0.0",
        f"--advertise-address={cable.host}",
        "--endpoint-reconciler-type=lease",
        "--kubelet-preferred-address-types=InternalIP",
    ]


@dataclass(frozen=True)
class Node:
    """A node that runs."""

    machine: Machine
    kubelet: Process

    @contextmanager
    def dead(self, pod: str, container: str) -> Iterator[None]:
        """As if its power were cut, until the end of the block: a container of a pod ends, and no kubelet sees it."""
        self.machine.kill(self.kubelet)
        try:
            chosen = f'labels."io.kubernetes.pod.name"=={pod},labels."io.kubernetes.container.name"=={container}'
            [found] = self.machine.run([*CTR, "containers", "ls", "--quiet", chosen]).split()
            self.machine.run([*CTR, "tasks", "kill", "--signal=SIGKILL", found])
            yield
        finally:
            self.kubelet.start()
            self.kubelet.wait_ready()


def start_node(plane: ControlPlane, cable: Cable, images: Images) -> Node:
    """Run a node until `plane` ends, with `images` and the sandbox's; returns when it is Ready.

    The plane has the scheduler, and was started with api_server_flags() and the cable's end as an address.
    """
    remove_cgroups(CGROUPS)
    plane.on_exit(lambda: remove_cgroups(CGROUPS))
    machine = Machine(plane.folder / "node", cable)
    plane.run("machine", machine.process)
    machine.connect()
    setup = _Setup(plane, machine, images.containerd)
    plane.run("containerd", setup.containerd())
    _remove_containers(machine)
    images.load(machine)
    plane.run("coredns", setup.coredns())
    kubelet = plane.run("kubelet", setup.kubelet())
    wait_for(plane.cluster.api, f"/api/v1/nodes/{NAME}", _is_ready)
    plane.run("kube-proxy", setup.proxy())  # it looks for its Node, and at first for half a minute if there is none
    return Node(machine, kubelet)


class _Setup:
    """Configuration and command of each program of the node."""

    def __init__(self, plane: ControlPlane, machine: Machine, root: Path) -> None:
        self._machine, self._folder, self._address, self._root = machine, machine.folder, machine.cable.guest, root
        config = json.loads(plane.cluster.kubeconfig.read_text())
        config["clusters"][0]["cluster"]["server"] = f"https://{machine.cable.host}:{plane.port}"
        self._kubeconfig = write_private(self._folder / "kubeconfig", json.dumps(config))

    def containerd(self) -> Process:
        bridge: Json = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True}
        bridge["ipam"] = {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}]}
        network: Json = {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, {"type": "loopback"}]}
        (self._folder / "cni").mkdir()
        (self._folder / "cni" / "pods.conflist").write_text(json.dumps(network))
        config = self._write("containerd.toml", CONTAINERD.replace("ROOT", str(self._root)))
        return self._process(["containerd", f"--config={config}"], CONTAINERD_PORT)

    def coredns(self) -> Process:
        config = self._write("Corefile", COREFILE.replace("KUBECONFIG", str(self._kubeconfig)))
        return self._process([program("coredns"), "-conf", config], DNS_READY_PORT)

    def proxy(self) -> Process:
        flags = [
            f"--kubeconfig={self._kubeconfig}",
            f"--hostname-override={NAME}",
            "--proxy-mode=iptables",
            f"--cluster-cidr={PODS}",
            f"--healthz-bind-address={self._address}:{PROXY_PORT}",
            # The host's limits are not ours to raise.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ]
        return self._process([program("kube-proxy"), *flags], PROXY_PORT)

    def kubelet(self) -> Process:
        config: Json = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "clusterDNS": [self._address],
            "clusterDomain": DOMAIN,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{CGROUPS}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "localStorageCapacityIsolation": False,
            "enforceNodeAllocatable": [],
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,  # never: the images are a cache of later runs
            "port": KUBELET_PORT,
        }
        flags = [
            f"--kubeconfig={self._kubeconfig}",
            f"--config={self._write('kubelet.json', json.dumps(config))}",
            f"--hostname-override={NAME}",
            f"--node-ip={self._address}",
            # The node controller evicts nothing while it sees no node that is ready. This is the only one, and does
            # not count for that rule.
            "--node-labels=node.kubernetes.io/exclude-disruption=true",
        ]
        make_cgroups(CGROUPS)
        return self._process([program("kubelet"), *flags], KUBELET_PORT)

    def _process(self, command: list[str | Path], port: int) -> Process:
        log = self._folder / f"{Path(command[0]).name}.log"
        return Process(self._machine.inside(command), log, ready=lambda: listens(port, self._address))

    def _write(self, name: str, text: str) -> Path:
        path = self._folder / name
        path.write_text(text.replace("ADDRESS", self._address).replace("FOLDER", str(self._folder)))
        return path


def _remove_containers(machine: Machine) -> None:
    """What the last run has left in containerd's root: containers that ended with their machine. Images stay."""
    if left := machine.run([*CTR, "containers", "ls", "--quiet"]).split():
        machine.run([*CTR, "containers", "rm", *left])


def _is_ready(node: Json | None) -> bool:
    conditions = ((node or {}).get("status") or {}).get("conditions") or []
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)
