"""A real API server with our CRD and admission policy."""

from __future__ import annotations

from api.conftest import server
from testbed.fixtures import cluster, control_plane, namespace

__all__ = ["cluster", "control_plane", "namespace", "server"]  # fixtures
