"""Programs that the transfer pod runs with the trainer image's python: standard library only, one file each.

They are sent as source (`python -c`), so that any trainer image will do. They touch ALIVE while bytes flow: `idle`,
the main program of the pod, exits when the file has not been touched for a while, so that the pod ends if its owner
was killed.
"""

from pathlib import Path


def source(name: str) -> str:
    """Source of one of the programs."""
    return Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
