"""A problem of a job, with its remedy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake: where, what, and how to correct it."""

    path: str
    """Key path from the root of the resource, such as spec.compute.gpu_type."""
    reason: str
    """A CamelCase word, or the code that other systems use (missing_gpu_type)."""
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message} {self.remedy}".rstrip()
