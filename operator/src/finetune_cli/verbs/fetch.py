"""`finetune fetch`: the result of a job, to here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from finetune_api.runtime.protocol import RESULT
from finetune_cli.remote.options import job_name, on_cluster

if TYPE_CHECKING:
    from finetune_cli.remote.cluster import Cluster


@click.command()
@job_name
@click.option("--to", "target", metavar="FOLDER", help=f"Folder to be made; NAME-{RESULT} if absent.")
@click.option("--transfer-image", metavar="IMAGE", help="Image, with python, of the pod that reads the claim.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@on_cluster
def command(cluster: Cluster, name: str, target: str | None, transfer_image: str | None, quiet: bool) -> None:
    """Bring the result of the job NAME, an adapter or a model, from its claim to a folder here.

    A short-lived pod reads the claim; it is removed afterwards. The folder appears when all of it has arrived.
    """
    from finetune_cli.remote.fetching import fetch  # noqa: PLC0415

    folder = Path(target or f"{name}-{RESULT}")
    fetch(cluster, name, folder, image=transfer_image, quiet=quiet)
    click.echo(str(folder))
