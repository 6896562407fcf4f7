"""The real Training Operator beside a control plane: it turns PyTorchJobs into pods and Services.

With webhook=False (the default) its admission is off and invalid jobs reach its controller; with webhook=True the
API server asks it first, as in a stock installation.
"""

import base64
import os
import shutil
from pathlib import Path

from testbed.api import Json
from testbed.build import extra, program
from testbed.cluster import Cluster, suppress_conflict
from testbed.control_plane import ControlPlane
from testbed.process import Process, free_port, listens

NAMESPACE = "kubeflow"
CRD = "pytorchjobs.kubeflow.org"
# The operator waits until a file is there before it starts its controllers, and never reads it: the path is fixed
# in its code. Its web server's pair lies below TMPDIR, of which every bed has its own. So an empty file here lets
# any number of beds run side by side; it is never removed, since another bed may be about to look.
MARKER = Path("/tmp/k8s-webhook-server/serving-certs/tls.crt")


def pytorchjob_crd() -> Path:
    """The CustomResourceDefinition of PyTorchJob as the Training Operator ships it, for ControlPlane(crds=...)."""
    return extra("crds") / "kubeflow.org_pytorchjobs.yaml"


def start_training_operator(plane: ControlPlane, *, webhook: bool = False, init_template: str = "") -> Process:
    """Run the Training Operator until `plane` ends; its CRD is installed where it is not there yet.

    init_template: YAML of the init container that workers get instead of the built-in one.
    """
    if plane.cluster.api.find(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD}") is None:
        plane.cluster.install_crd(pytorchjob_crd())
    _create_certificate_secret(plane.cluster)
    webhook_port = free_port()
    process = plane.run("training-operator", _process(plane, webhook_port, init_template))
    if webhook:
        plane.cluster.api.apply(_webhook(webhook_port, plane.certificate))
    return process


def _create_certificate_secret(cluster: Cluster) -> None:
    """An empty Secret: the operator fills it, but would not create it."""
    metadata: Json = {"name": "training-operator-webhook-cert", "namespace": NAMESPACE}
    with suppress_conflict():
        cluster.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    with suppress_conflict():
        cluster.api.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata})


def _process(plane: ControlPlane, webhook_port: int, init_template: str) -> Process:
    MARKER.parent.mkdir(parents=True, exist_ok=True)
    MARKER.touch()
    folder = plane.folder / "training-operator"
    _provide_pair(plane, folder / "k8s-webhook-server" / "serving-certs")
    health = free_port()
    command = [
        str(program("training-operator")),
        f"--kubeconfig={plane.cluster.kubeconfig}",
        "--enable-scheme=pytorchjob",
        "--controller-threads=4",
        "--kube-api-qps=100",
        "--kube-api-burst=200",
        "--metrics-bind-address=0",
        f"--health-probe-bind-address=127.0.0.1:{health}",
        f"--webhook-server-port={webhook_port}",
    ]
    if init_template:
        template = folder / "init-container.yaml"
        template.write_text(init_template)
        command.append(f"--pytorch-init-container-template-file={template}")
    environment = os.environ | {"TMPDIR": str(folder)}
    # Controllers and the web server start together, once the certificates are there.
    return Process(
        command, plane.folder / "training-operator.log", ready=lambda: listens(webhook_port), env=environment
    )


def _provide_pair(plane: ControlPlane, folder: Path) -> None:
    """The pair of the operator's web server, where it looks below its TMPDIR: the API server's own will do."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(plane.certificate, folder / "tls.crt")
    shutil.copy(plane.key, folder / "tls.key")


def _webhook(port: int, certificate: Path) -> Json:
    """The validating webhook for PyTorchJobs, reached by URL.

    Its name differs from the stock one on purpose: the operator would put its Secret's CA into that one, while its
    server here shows another certificate.
    """
    authority = base64.b64encode(certificate.read_bytes()).decode()
    url = f"https://127.0.0.1:{port}/validate-kubeflow-org-v1-pytorchjob"
    rule = {"apiGroups": ["kubeflow.org"], "apiVersions": ["v1"], "resources": ["pytorchjobs"]}
    webhook = {
        "name": "validator.pytorchjob.training-operator.kubeflow.org",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "clientConfig": {"url": url, "caBundle": authority},
        "rules": [rule | {"operations": ["CREATE", "UPDATE"]}],
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "testbed-training-operator"},
        "webhooks": [webhook],
    }
