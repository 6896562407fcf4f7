"""A real API server takes the manifests of the pages, in a namespace with Pod Security's restricted level."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.pages import ROOT, of
from testbed.cluster import Cluster

RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
ELSEWHERE = ("argoproj.io/",)
"""API groups that this server does not have."""
MANIFESTS = {file.name: file.read_text() for file in sorted((ROOT / "docs/examples").glob("*.yaml"))}
MANIFESTS |= {str(block): block.text for block in of("yaml") if not any(group in block.text for group in ELSEWHERE)}


@pytest.mark.parametrize("text", MANIFESTS.values(), ids=MANIFESTS)
def test_the_server_takes_a_manifest(text: str, server: Cluster, namespace: str, tmp_path: Path) -> None:
    server.kubectl("label", "namespace", namespace, RESTRICTED)
    file = tmp_path / "manifests.yaml"
    file.write_text(text)
    done = server.kubectl("--namespace", namespace, "apply", "--dry-run=server", "-f", str(file))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
