"""Which kinds kopf watches: those that the API server serves, whenever it starts or stops serving them.

kopf scans discovery at its start, and again when a CRD changes. A CRD is established before discovery serves its
kind, so that scan may find nothing, and no other scan follows: the kind is never watched. With rights in one
namespace, CRDs may not be watched at all. So kopf follows no CRDs; this module polls discovery for the kinds that may
be installed late, and updates kopf's list.
"""

from __future__ import annotations

import asyncio
import logging

from kopf._cogs.structs.references import Insights, Resource  # kopf exports no names for these

from finetune_api.resource.names import GROUP, PLURAL, VERSION

from .errors import ClusterError
from .runtime import Operator

SECONDS = 5.0
"""Between two questions: one small request each."""
PATIENCE_SECONDS = 10.0
"""Of one discovery: a kopf that fails meanwhile never releases the session it shares with us."""
JOBS = Resource(GROUP, VERSION, PLURAL, namespaced=True)

log = logging.getLogger(__name__)


class WatchedKinds:
    """The kinds that kopf watches; it starts and ends its watches when these change."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._insights = Insights()
        backend = operator.backend
        self._runs = Resource(backend.group, backend.version, backend.plural, namespaced=True)

    def begin(self) -> Insights:
        """New insights, which a kopf that starts shares with us."""
        self._insights = Insights()
        return self._insights

    async def follow(self) -> None:
        """Keep kopf's list equal to what is served."""
        while True:
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await self.revise()
            except (ClusterError, TimeoutError) as error:
                log.warning("discovery failed", extra={"error": str(error) or "kopf does not listen"})
            await asyncio.sleep(SECONDS)

    async def revise(self) -> None:
        """Compare once, after kopf's own first scan. FinetuneJobs are served if they could be listed."""
        if not self._insights.ready_resources.is_set():
            return
        served = {JOBS} if self._operator.synced.is_set() else set()
        if await self._operator.reconciler.observer.backend():
            served.add(self._runs)
        elif self._runs in self._insights.watched_resources:
            await self._announce(self._runs, served=False)
        for kind in served - self._insights.watched_resources:
            await self._announce(kind, served=True)

    async def _announce(self, kind: Resource, *, served: bool) -> None:
        log.info("watch begins" if served else "watch ends", extra={"resource": f"{kind.plural}.{kind.group}"})
        async with self._insights.revised:
            watched = self._insights.watched_resources
            (watched.add if served else watched.discard)(kind)
            self._insights.revised.notify_all()
