"""The backends that there are. A new one is a module here and an entry below; CONTRIBUTING.md says how."""

from __future__ import annotations

from .protocol import Backend
from .pytorchjob import PyTorchJobs

BACKENDS: tuple[Backend, ...] = (PyTorchJobs(),)
DEFAULT = BACKENDS[0]
"""Of the operator and of the command line."""
