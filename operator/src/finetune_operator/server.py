"""/metrics, /healthz and /readyz. Serves what is known and takes no orders."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from . import metrics
from .runtime import Operator


async def serve(operator: Operator) -> web.AppRunner:
    """Start the server; the caller cleans the runner up."""
    app = web.Application()
    app.add_routes([
        web.get("/metrics", lambda _: _metrics(operator)),
        web.get("/healthz", lambda _: _healthz(operator)),
        web.get("/readyz", lambda _: _readyz(operator)),
    ])  # fmt: skip
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1, keepalive_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, operator.settings.http_host, operator.settings.http_port).start()
    return runner


async def _metrics(operator: Operator) -> web.Response:
    metrics.JOBS.clear()
    for phase, count in operator.cache.phases().items():
        metrics.JOBS.labels(phase=phase).set(count)
    metrics.QUEUE_DEPTH.set(operator.queue.depth())
    metrics.UNREADABLE_NODES.set(operator.progress.schedule.unreadable_nodes())
    metrics.CANARY_SECONDS.set(operator.canary.age())
    return web.Response(body=generate_latest(metrics.REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _healthz(operator: Operator) -> web.Response:
    unhealthy_reason = operator.unhealthy_reason()
    return web.Response(text=unhealthy_reason or "ok", status=503 if unhealthy_reason else 200)


async def _readyz(operator: Operator) -> web.Response:
    ready = operator.synced.is_set()
    return web.Response(text="ok" if ready else "the cluster is not listed yet", status=200 if ready else 503)
