"""`finetune fetch`: downloads the result of a job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from finetune_api.runtime.protocol import RESULT
from finetune_cli.remote.options import job_name, on_cluster

if TYPE_CHECKING:
    from finetune_cli.remote.cluster import ClusterClient


@click.command()
@job_name
@click.option("--to", "target", metavar="FOLDER", help=f"New folder for the result; default: NAME-{RESULT}.")
@click.option("--transfer-image", metavar="IMAGE", help="Image with python for the pod that reads the claim.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@on_cluster
def command(cluster: ClusterClient, name: str, target: str | None, transfer_image: str | None, quiet: bool) -> None:
    """Download the result of the job NAME, an adapter or a model, from its claim to a local folder.

    A short-lived pod reads the claim and is deleted afterwards. The folder appears when the download is complete.
    """
    from finetune_cli.remote.fetching import fetch  # noqa: PLC0415

    folder = Path(target or f"{name}-{RESULT}")
    fetch(cluster, name, folder, image=transfer_image, quiet=quiet)
    click.echo(str(folder))
