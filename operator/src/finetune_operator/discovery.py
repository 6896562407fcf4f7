"""Which kinds kopf watches: those that the API server serves, whenever it starts or stops serving them.

kopf scans discovery at its start, and again when a CRD changes. A CRD is established before discovery serves its
kind, so that scan may find nothing, and no other scan follows: the kind is never watched. With rights in one
namespace, CRDs may not be watched at all. So kopf follows no CRDs; this module polls discovery for the kinds that may
be installed late, and updates kopf's list. It is the only module that imports names that kopf does not export.
"""

from __future__ import annotations

import asyncio
import logging

from kopf._cogs.structs.references import Insights, Resource  # kopf exports no names for these

from finetune_api.resource.names import GROUP, PLURAL, VERSION

from .cluster import Kind
from .errors import ClusterError
from .runtime import Operator

SECONDS = 2.0
"""Between two questions: two small requests each; the answer about the backend is cached for 5 s."""
PATIENCE_SECONDS = 10.0
"""Of one discovery: a kopf that fails meanwhile never releases the session it shares with us."""
JOBS = Resource(GROUP, VERSION, PLURAL, namespaced=True)

log = logging.getLogger(__name__)


class WatchedKinds:
    """The kinds that kopf watches; it starts and ends its watches when these change."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._insights = Insights()
        self._begins, self._listed_for = 0, 1
        """Starts of kopf, and the last that a list of everything followed; the first is that of the process."""
        backend = operator.backend
        self._runs = Resource(backend.group, backend.version, backend.plural, namespaced=True)

    def begin(self) -> Insights:
        """New insights, which a kopf that starts shares with us."""
        self._insights, self._begins = Insights(), self._begins + 1
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
        """Compare once, after kopf's own first scan."""
        if not self._insights.ready_resources.is_set():
            return
        if self._begins > self._listed_for:
            self._listed_for = self._begins
            self._operator.watches_began_again()
        served = {JOBS: await self._operator.cluster.serves(Kind.JOBS)}
        served[self._runs] = await self._operator.reconciler.observer.backend()
        for kind, is_served in served.items():
            if is_served != (kind in self._insights.watched_resources):
                await self._announce(kind, served=is_served)

    async def _announce(self, kind: Resource, *, served: bool) -> None:
        log.info("watch begins" if served else "watch ends", extra={"resource": f"{kind.plural}.{kind.group}"})
        async with self._insights.revised:
            watched = self._insights.watched_resources
            (watched.add if served else watched.discard)(kind)
            self._insights.revised.notify_all()
