"""What can go wrong between us and the API server.

ClusterError
├── Unavailable      the server did not answer, or asked us to come back: later passes try again
│   ├── WebhookFailed   it could not ask an admission webhook; its message goes into the status
│   └── TimedOut     the pass as a whole took too long
├── Conflict         the decision was based on an old version: reconcile again
├── AlreadyExists    the name is taken; apply.py checks by whom
├── NotFound         the object is gone
├── BackendMissing   the backend's resource itself is unknown to this cluster
└── Refused          the server rejects the request (quota, admission, RBAC); its message goes into the status
    └── NameTaken    a foreign object has the name of the run; likewise
"""

from __future__ import annotations


class ClusterError(Exception):
    """Base of all; `reason` labels the metric."""

    reason = "Error"


class Unavailable(ClusterError):
    reason = "Unavailable"


class WebhookFailed(Unavailable):
    reason = "WebhookFailed"


class TimedOut(Unavailable):
    reason = "TimedOut"


class Conflict(ClusterError):
    reason = "Conflict"


class AlreadyExists(ClusterError):
    reason = "AlreadyExists"


class NotFound(ClusterError):
    reason = "NotFound"


class BackendMissing(ClusterError):
    reason = "BackendMissing"


class Refused(ClusterError):
    reason = "Refused"


class NameTaken(Refused):
    reason = "NameTaken"
