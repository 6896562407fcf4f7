"""From a job file and overrides to a locally validated manifest for a cluster. Called by `finetune submit`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from finetune_api.validation import uris
from finetune_api.validation.problem import Problem
from finetune_api.validation.uris import Scheme
from finetune_cli import local_files, planning
from finetune_cli.job_file import JobFile
from finetune_cli.overrides import Overrides
from finetune_cli.planning import ValidatedJob
from finetune_plan.job_settings import JobSettings, Setting

from .api_client import Json
from .cluster import ClusterClient
from .dataset_upload import DatasetUpload, dataset_upload
from .errors import invalid

CLUSTER_SETTINGS = {"UnknownGpuType", "ServiceAccountNotAllowed"}
"""Reasons that depend on the settings of the operator, which are not known here, besides those of the network."""


@dataclass(frozen=True)
class PreparedJob:
    """A job that is ready to be submitted."""

    manifest: Json
    upload: DatasetUpload | None


def prepare(file: JobFile, given: Overrides, cluster: ClusterClient) -> PreparedJob:
    """Raises InvalidInput with all problems; nothing has been sent."""
    found = _validate(file, given)
    if given.dataset is None:
        return PreparedJob(_manifest(found.resource, cluster), None)
    upload = dataset_upload(Path(given.dataset), found.resource["metadata"]["name"], found.resource["spec"])
    found = planning.validate(file, replace(given, dataset=upload.uri))
    return PreparedJob(_manifest(found.resource, cluster), upload)


def _validate(file: JobFile, given: Overrides) -> ValidatedJob:
    """The job with the local file as its data, after all checks that `validate` and `run` make."""
    found = planning.validate(file, given)
    problems = [p for p in found.verdict.problems if p.reason not in CLUSTER_SETTINGS]
    if found.verdict.resolution is None or problems:
        raise file.invalid(problems)
    resolution = found.verdict.resolution
    problems += _local_only(resolution.job, given)
    problems += local_files.data_problems(resolution.job, resolution.run_config.data) if given.dataset else ()
    if problems:
        raise file.invalid(problems)
    planning.print_notes(found.verdict.resolution)
    for problem in (*found.verdict.problems, *found.left_to_cluster):
        note = f"{problem.message} The settings of this cluster may differ."
        click.echo(f"{click.style('note:', fg='yellow')} {note}", err=True)
    return found


def _local_only(job: JobSettings, given: Overrides) -> Iterator[Problem]:
    """Local files that pods will not find. An absolute path may exist in the image."""
    settings: tuple[tuple[Setting[Any], str], ...] = (
        (job.model, "Name a model of the Hugging Face Hub, or put the folder on a claim: pvc://CLAIM/PATH."),
        (job.lora.source, "Name an adapter of the Hugging Face Hub, or put the folder on a claim: pvc://CLAIM/PATH."),
        (job.data.train, "Give --dataset with this file, which uploads it."),
        (job.data.validation, "Put it on a claim (pvc://CLAIM/PATH) or into a ConfigMap (configmap://NAME/KEY)."),
    )
    for setting, remedy in settings:
        if not setting.value or (setting is job.data.train and given.dataset):
            continue
        source = uris.KEYS[setting.key].parse(setting.value)
        if source.scheme is Scheme.PATH and not setting.value.startswith("/") and Path(setting.value).exists():
            message = f"{setting.value} is a file of this machine, which pods of a cluster cannot read."
            yield Problem(f"spec.{setting.key}", "NotOnCluster", message, remedy)


def _manifest(resource: Json, cluster: ClusterClient) -> Json:
    """The job with its namespace: from -n, the file or the context. As with kubectl, -n and the file must agree."""
    metadata = resource["metadata"]
    own = metadata.get("namespace")
    if own and cluster.namespace_given and own != cluster.namespace:
        message = f"The namespace is {own} in the file, and {cluster.namespace} in -n."
        raise invalid("metadata.namespace", "NamespaceContradiction", message, "Remove one of them.")
    cluster.namespace = own or cluster.namespace
    return {**resource, "metadata": {**metadata, "namespace": cluster.namespace}}
