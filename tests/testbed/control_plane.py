"""etcd and kube-apiserver on free ports, with the controller manager and the scheduler by choice.

The base of every test that claims something about Kubernetes: RBAC is on, admission is the real one, and an
audit log shows each request when asked for. Ready in about two seconds.
"""

import json
import secrets
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from testbed.api import Api, Json
from testbed.build import program
from testbed.cluster import Cluster, write_private
from testbed.process import Process, free_port, listens

SERVICE_IPS = "10.96.0.0/16"
# Every name and address under which clients on this machine, or pods, reach the server.
SERVER_NAMES = "IP:127.0.0.1,IP:10.96.0.1,DNS:localhost,DNS:kubernetes.default.svc,DNS:kubernetes.default"


class ControlPlane:
    """An API server of our own in `folder`; `with` starts it and ends everything that was started in it.

    crds: CustomResourceDefinitions, as files or objects, installed before any controller runs: the garbage
    collector looks for new kinds only every 30 s. audit: log every request (see requests()).
    controllers: run kube-controller-manager, which collects garbage by owner and empties deleted namespaces.
    scheduler: run kube-scheduler. flags: more flags for kube-apiserver. address: one more at which it is reached.
    """

    def __init__(
        self,
        folder: Path,
        *,
        crds: Sequence[Path | Json] = (),
        audit: bool = False,
        controllers: bool = False,
        scheduler: bool = False,
        flags: Sequence[str] = (),
        address: str = "127.0.0.1",
    ) -> None:
        self.folder = folder
        self.audit_log = folder / "audit.log" if audit else None
        self.port = free_port()
        self.certificate = folder / "tls.crt"
        self.key = folder / "tls.key"
        self._token = secrets.token_urlsafe(24)
        self._crds, self._controllers, self._scheduler, self._flags = crds, controllers, scheduler, flags
        self._address = address
        self._stack = ExitStack()
        self.processes: dict[str, Process] = {}
        self.cluster: Cluster

    @property
    def apiserver(self) -> Process:
        """The API server's process, to be stopped and started by tests of outages."""
        return self.processes["kube-apiserver"]

    def run(self, name: str, process: Process) -> Process:
        """Start a further process, wait for it, and end it with this control plane (last started, first ended)."""
        self.processes[name] = self._stack.enter_context(process)
        return process

    def on_exit(self, callback: Callable[[], object]) -> None:
        """Call back when this control plane ends, before what was started earlier is ended."""
        self._stack.callback(callback)

    def requests(self) -> list[Json]:
        """The audit log so far: one entry per finished request for an object, in the order of their ends."""
        if self.audit_log is None:
            raise ValueError("this control plane was started without audit=True")
        text = self.audit_log.read_text() if self.audit_log.exists() else ""
        lines = text.rpartition("\n")[0].splitlines()  # the last one may not be written to its end yet
        entries: list[Json] = [json.loads(line) for line in lines]
        return [entry for entry in entries if "objectRef" in entry]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._stack = stack
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self) -> None:
        _self_signed(self.certificate, self.key, self._address)
        url = f"https://127.0.0.1:{self.port}"
        api = Api(url, token=self._token, ca=self.certificate)
        self._stack.callback(api.close)
        kubeconfig = write_private(self.folder / "kubeconfig", _kubeconfig(url, self.certificate, self._token))
        self.cluster = Cluster(api=api, kubeconfig=kubeconfig, folder=self.folder)
        etcd_port = free_port()
        self.run("etcd", self._etcd(etcd_port))
        self.run("kube-apiserver", self._apiserver(etcd_port))
        for crd in self._crds:
            self.cluster.install_crd(crd)
        if self._controllers:
            self.run("kube-controller-manager", self._manager())
        if self._scheduler:
            self.run("kube-scheduler", self._component("kube-scheduler"))

    def _etcd(self, port: int) -> Process:
        client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
        command = [
            str(program("etcd")),
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # a test's data need not outlive the machine
        ]
        return Process(command, self.folder / "etcd.log", ready=lambda: listens(port))

    def _apiserver(self, etcd_port: int) -> Process:
        tokens = write_private(self.folder / "tokens.csv", f'{self._token},admin,admin,"system:masters"\n')
        command = [
            str(program("kube-apiserver")),
            f"--etcd-servers=http://127.0.0.1:{etcd_port}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={self.certificate}",
            f"--tls-private-key-file={self.key}",
            f"--cert-dir={self.folder}",
            f"--service-cluster-ip-range={SERVICE_IPS}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self.certificate}",
            f"--service-account-signing-key-file={self.key}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            *self._audit_flags(),
            *self._flags,
        ]
        ready = lambda: self.cluster.api.answers("/readyz")  # noqa: E731
        return Process(command, self.folder / "kube-apiserver.log", ready=ready)

    def _audit_flags(self) -> list[str]:
        if self.audit_log is None:
            return []
        policy: Json = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]}
        policy["omitStages"] = ["RequestReceived"]
        path = self.folder / "audit-policy.json"
        path.write_text(json.dumps(policy))
        # One file, however long the tests take: the server would begin another one after 100 MiB.
        return [f"--audit-policy-file={path}", f"--audit-log-path={self.audit_log}", "--audit-log-maxsize=100000"]

    def _manager(self) -> Process:
        return self._component(
            "kube-controller-manager",
            f"--service-account-private-key-file={self.key}",
            f"--root-ca-file={self.certificate}",
        )

    def _component(self, name: str, *flags: str) -> Process:
        port = free_port()
        command = [
            str(program(name)),
            f"--kubeconfig={self.cluster.kubeconfig}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--tls-cert-file={self.certificate}",
            f"--tls-private-key-file={self.key}",
            *flags,
        ]
        return Process(command, self.folder / f"{name}.log", ready=lambda: listens(port))


def _self_signed(certificate: Path, key: Path, address: str) -> None:
    """One key for all: TLS of every server here, and the signing of service account tokens."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-subj", "/CN=testbed", "-days", "2", "-addext", f"subjectAltName={SERVER_NAMES},IP:{address}"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *subject, *files], check=True, capture_output=True)
    key.chmod(0o600)


def _kubeconfig(url: str, certificate: Path, token: str) -> str:
    cluster = {"name": "test", "cluster": {"server": url, "certificate-authority": str(certificate)}}
    user = {"name": "admin", "user": {"token": token}}
    context = {"name": "test", "context": {"cluster": "test", "user": "admin"}}
    document = {"apiVersion": "v1", "kind": "Config", "current-context": "test"}
    return json.dumps(document | {"clusters": [cluster], "users": [user], "contexts": [context]})
