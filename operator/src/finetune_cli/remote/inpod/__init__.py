"""Programs that the transfer pod runs with the trainer image's own python: standard library only, one file each.

They are sent as text (`python -c`), so that any trainer image serves and none has to know them. ALIVE is touched
while bytes flow: `stay`, the pod's main program, ends the pod when nobody has touched it for a while, so a pod
whose owner was killed does not stay.
"""

from pathlib import Path


def text(name: str) -> str:
    """Source of one of the programs."""
    return Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
