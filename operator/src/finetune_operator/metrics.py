"""What the operator counts, for Prometheus. Labels are bounded: no job names, no user text."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

JOBS = Gauge(
    "finetune_operator_jobs", "FinetuneJobs by status.phase; None: not reconciled yet.", ["phase"], registry=REGISTRY
)
RECONCILE_SECONDS = Histogram(
    "finetune_operator_reconcile_duration_seconds",
    "Duration of one reconcile of one job, requests included.",
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60),
    registry=REGISTRY,
)
ERRORS = Counter(
    "finetune_operator_reconcile_errors_total",
    "Reconciles that failed and are retried, by kind of error.",
    ["reason"],
    registry=REGISTRY,
)
REQUESTS = Counter(
    "finetune_operator_api_requests_total",
    "Requests to the API server, watches apart, by RBAC verb, resource and HTTP code (none: no answer).",
    ["verb", "resource", "code"],
    registry=REGISTRY,
)
QUEUE_DEPTH = Gauge("finetune_operator_queue_depth", "Jobs that are due to be reconciled.", registry=REGISTRY)
MALFORMED = Counter(
    "finetune_operator_malformed_objects_total",
    "Versions of objects that could not be read and were skipped, by kind.",
    ["kind"],
    registry=REGISTRY,
)
BACKEND_MISSING = Gauge(
    "finetune_operator_backend_missing",
    "1 while the cluster does not know the resource that runs are made of.",
    registry=REGISTRY,
)
UNREADABLE_PROGRESS = Counter(
    "finetune_operator_unreadable_progress_total", "Reads of a job's progress that failed.", registry=REGISTRY
)
UNREADABLE_NODES = Gauge(
    "finetune_operator_unreadable_nodes",
    "Nodes from which the log of a job's first pod could not be read at the last attempt.",
    registry=REGISTRY,
)
DROPPED_EVENTS = Counter(
    "finetune_operator_dropped_events_total",
    "Events that were not created, because too many waited or the API server took none.",
    registry=REGISTRY,
)
CANARY_SECONDS = Gauge(
    "finetune_operator_canary_age_seconds",
    "Age of the oldest heartbeat that was written and has not come back through the watch; 0: none.",
    registry=REGISTRY,
)
