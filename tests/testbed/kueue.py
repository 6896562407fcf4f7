"""The real Kueue beside a control plane: it admits PyTorchJobs by quota, and takes them back.

As in a stock installation, its webhooks stand before the API server, and jobs without a queue are none of its
business. Only PyTorchJobs are enabled: the webhooks of other kinds would ask for what is not installed.
"""

import base64
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from testbed.api import Json
from testbed.build import extra, program
from testbed.cluster import Cluster, suppress_conflict
from testbed.control_plane import ControlPlane
from testbed.process import Process, free_port, listens

NAMESPACE = "kueue-system"
FRAMEWORK = "kubeflow.org/pytorchjob"
VERSION = "kueue.x-k8s.io/v1beta2"
WATCHED = ("kueue.x-k8s.io", "pytorchjobs")
"""Of the stock webhooks those for this group and this resource are installed."""
# Where certificates are not Kueue's own business, it wants a pair for its metrics at a path that is fixed in its
# code, even if it serves none. It gets an /etc of its own, with nothing else in it: names are not resolved here.
PRIVATE_ETC = (
    'mount -t tmpfs none /etc && mkdir -p /etc/kueue/metrics && cp -r "$0" /etc/kueue/metrics/certs && exec "$@"'
)


def kueue_crds() -> list[Path]:
    """Kueue's CustomResourceDefinitions, for ControlPlane(crds=...)."""
    return sorted(extra("kueue-crds").glob("*.yaml"))


def start_kueue(plane: ControlPlane) -> Process:
    """Run Kueue until `plane` ends; its CRDs and that of the PyTorchJob are there already."""
    with suppress_conflict():
        plane.cluster.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    port = free_port()
    process = plane.run("kueue", _process(plane, port))
    for configuration in _webhooks(port, plane.certificate):
        plane.cluster.api.apply(configuration)
    return process


def create_queue(cluster: Cluster, namespace: str, name: str, quota: Mapping[str, str]) -> None:
    """A LocalQueue of a namespace over a ClusterQueue of its own, in which the higher priority preempts."""
    flavor = {"name": "default", "resources": [{"name": k, "nominalQuota": v} for k, v in quota.items()]}
    group = {"coveredResources": list(quota), "flavors": [flavor]}
    theirs = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    with suppress_conflict():
        cluster.api.create(_object("ResourceFlavor", {"name": "default"}))
    cluster.api.create(_object("ClusterQueue", {"name": namespace}) | {"spec": {
        "resourceGroups": [group], "namespaceSelector": theirs,
        "preemption": {"withinClusterQueue": "LowerPriority"},
    }})  # fmt: skip
    local = _object("LocalQueue", {"name": name, "namespace": namespace})
    cluster.api.create(local | {"spec": {"clusterQueue": namespace}})


def create_priority(cluster: Cluster, name: str, value: int) -> None:
    """A WorkloadPriorityClass."""
    cluster.api.create(_object("WorkloadPriorityClass", {"name": name}) | {"value": value})


def _object(kind: str, metadata: Json) -> Json:
    return {"apiVersion": VERSION, "kind": kind, "metadata": metadata}


def _process(plane: ControlPlane, port: int) -> Process:
    folder = plane.folder / "kueue"
    folder.mkdir()
    shutil.copy(plane.certificate, folder / "tls.crt")
    shutil.copy(plane.key, folder / "tls.key")
    config = plane.folder / "kueue.json"
    config.write_text(json.dumps(_config(folder, port)))
    alone = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--user", "--map-root-user"])]
    command = [*alone, "sh", "-c", PRIVATE_ETC, str(folder), str(program("kueue")), f"--config={config}"]
    environment = os.environ | {"KUBECONFIG": str(plane.cluster.kubeconfig)}
    # The web server starts before the caches are filled; webhooks are answered from then on.
    return Process(command, plane.folder / "kueue.log", ready=lambda: listens(port), env=environment)


def _config(certificates: Path, port: int) -> Json:
    """The stock configuration but for what one machine has no use for."""
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "health": {"healthProbeBindAddress": "0"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": port, "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "clientConnection": {"qps": 300, "burst": 500},
        "featureGates": {"VisibilityOnDemand": False},  # an API server of its own
        "integrations": {"frameworks": [FRAMEWORK]},
    }


def _webhooks(port: int, certificate: Path) -> Iterator[Json]:
    """The stock configurations, reached by URL."""
    authority = base64.b64encode(certificate.read_bytes()).decode()
    for stock in yaml.safe_load_all((extra("kueue-webhooks") / "manifests.yaml").read_text()):
        kept = [each for each in stock["webhooks"] if _is_watched(each)]
        for each in kept:
            path = each["clientConfig"]["service"]["path"]
            each["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}", "caBundle": authority}
        yield stock | {"webhooks": kept}


def _is_watched(webhook: Json) -> bool:
    return any(word in WATCHED for rule in webhook["rules"] for word in (*rule["apiGroups"], *rule["resources"]))
