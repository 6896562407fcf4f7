"""kopf's part: watches whose every event ends in one call, and the login. No decision is made here.

Only low-level event handlers are used: they write nothing to our objects, neither annotations nor finalizers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import kopf

from finetune_api.resource import names
from finetune_api.resource.names import GROUP, PLURAL, VERSION
from finetune_api.validation.predicates import find
from finetune_plan.backends.protocol import Backend

from .cluster import PAGE, Kind
from .identity import Key, key_of
from .runtime import Operator
from .settings import Settings
from .transport import load_configuration

BACKOFF_SECONDS = 10.0
"""Longest pause between two attempts to reach the API server: how long after an outage we see it again."""


class Backoffs:
    """Pauses between attempts in seconds: endless, because an operator has nothing better to do."""

    def __iter__(self) -> Iterator[float]:
        pause = 1.0
        while True:
            yield pause * random.uniform(0.5, 1.0)  # noqa: S311
            pause = min(BACKOFF_SECONDS, pause * 2)


def kopf_settings(backend: Backend) -> kopf.OperatorSettings:
    """How kopf watches. Why each: docs/adr/0010."""
    found = kopf.OperatorSettings()
    found.watching.inactivity_timeout = 70
    found.watching.server_timeout = 300
    found.watching.connect_timeout = 10
    found.watching.chunk_size = PAGE
    found.watching.label_selectors["", "v1", "pods"] = names.JOB_UID_LABEL
    found.watching.label_selectors[backend.group, backend.version, backend.plural] = names.JOB_UID_LABEL
    found.watching.field_selectors["", "v1", "events"] = f"reason={backend.refusal_reason}"
    found.watching.field_selectors["coordination.k8s.io", "v1", "leases"] = f"metadata.name={names.LEASE}"
    found.queueing.idle_timeout = 0.2
    found.networking.request_timeout = 60
    found.networking.connect_timeout = 10
    found.networking.error_backoffs = Backoffs()
    found.posting.enabled = False
    found.peering.standalone = True
    found.persistence.diffbase_storage = _NoDiffBase()
    found.scanning.disabled = True  # discovery.py follows the kinds
    found.process.ultimate_exiting_timeout = None  # __main__.py has a limit of its own
    return found


def register(operator: Operator) -> kopf.OperatorRegistry:
    """The handlers."""
    registry, backend = kopf.OperatorRegistry(), operator.backend

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def job(event: Any, **_: Any) -> None:
        operator.on_event(Kind.JOBS, event["type"], event["object"])

    @kopf.on.event(backend.group, backend.version, backend.plural, registry=registry)
    async def run(event: Any, **_: Any) -> None:
        operator.on_event(Kind.RUNS, event["type"], event["object"])

    @kopf.on.event("", "v1", "pods", registry=registry)
    async def pod(event: Any, **_: Any) -> None:
        operator.on_event(Kind.PODS, event["type"], event["object"])

    @kopf.on.event("", "v1", "events", registry=registry)
    async def refused(event: Any, **_: Any) -> None:
        operator.on_refusal_event(event["type"], event["object"])

    @kopf.on.event("coordination.k8s.io", "v1", "leases", registry=registry)
    async def heartbeat(event: Any, **_: Any) -> None:
        if key_of(event["object"]) == Key(operator.settings.own_namespace, names.LEASE):
            operator.canary.received(find(event["object"], "spec.renewTime") or "")

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await _connection(operator.settings)

    return registry


async def _connection(settings: Settings) -> kopf.ConnectionInfo:
    """What kopf needs to know of the API server; asked again when a token is no longer taken."""
    found = await load_configuration(settings.kubeconfig)
    header = await found.get_api_key_with_prefix("BearerToken") or ""
    scheme, _, token = header.partition(" ")
    return kopf.ConnectionInfo(
        server=found.host,
        ca_path=found.ssl_ca_cert,
        insecure=not found.verify_ssl,
        scheme=scheme.capitalize() or None,
        token=token or None,
        certificate_path=found.cert_file,
        private_key_path=found.key_file,
        proxy_url=found.proxy,
    )


class _NoDiffBase(kopf.DiffBaseStorage):
    """kopf's memory of what an object was like: we compare with the world instead, so there is nothing to keep."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        return
