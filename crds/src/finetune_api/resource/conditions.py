"""Names of the conditions of a job. status.py sets them, reasons.py has their reasons."""

from __future__ import annotations

READY = "Ready"
"""True when the job has succeeded (kstatus reads this one)."""
ACCEPTED = "Accepted"
"""The job is valid, and this version and this cluster can run it."""
DATA_READY = "DataReady"
"""The rows were read and can be used for training."""
PODS_READY = "PodsReady"
"""Every pod of the run is running."""
TRAINING = "Training"
"""Optimizer steps are running."""
SUSPENDED = "Suspended"
COMPLETE = "Complete"
FAILED = "Failed"
