"""From a file and options to the job for a cluster, judged here first. `finetune submit` calls it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from finetune_api.validation import uris
from finetune_api.validation.problem import Problem
from finetune_api.validation.uris import Scheme
from finetune_cli import files, planning
from finetune_cli.changes import Changes
from finetune_cli.planning import Judged
from finetune_cli.reading import Input
from finetune_plan.job_settings import JobSettings, Setting

from .cluster import Cluster
from .dataset import Parcel, parcel
from .errors import refused
from .server import Json

CLUSTER_DECIDES = {"UnknownGpuType", "ServiceAccountNotAllowed"}
"""Reasons that rest on the settings of a cluster, which are not known here."""


@dataclass(frozen=True)
class Prepared:
    """A job that is ready to be sent."""

    manifest: Json
    parcel: Parcel | None


def prepared(source: Input, asked: Changes, cluster: Cluster) -> Prepared:
    """Raises Refused with everything that is wrong; nothing was sent."""
    found = _judged(source, asked)
    if asked.dataset is None:
        return Prepared(_manifest(found.resource, cluster), None)
    rows = parcel(Path(asked.dataset), found.resource["metadata"]["name"], found.resource["spec"])
    found = planning.judged(source, replace(asked, dataset=rows.uri))
    return Prepared(_manifest(found.resource, cluster), rows)


def _judged(source: Input, asked: Changes) -> Judged:
    """The job with the local file as its data, after all checks that `validate` and `run` make."""
    found = planning.judged(source, asked)
    problems = [p for p in found.verdict.problems if p.reason not in CLUSTER_DECIDES]
    if found.verdict.resolution is None or problems:
        raise source.refused(problems)
    resolution = found.verdict.resolution
    problems += _here(resolution.job, asked)
    problems += files.data_problems(resolution.job, resolution.run_config.data) if asked.dataset else ()
    if problems:
        raise source.refused(problems)
    planning.say_notes(found.verdict.resolution)
    for problem in found.verdict.problems:
        click.echo(f"{click.style('note:', fg='yellow')} {problem.message} This cluster may know better.", err=True)
    return found


def _here(job: JobSettings, asked: Changes) -> Iterator[Problem]:
    """Files of this machine that pods will not find; a path from the root may lie in the image."""
    settings: tuple[tuple[Setting[Any], str], ...] = (
        (job.model, "Name a model of the Hugging Face Hub, or put the folder on a claim: pvc://CLAIM/PATH."),
        (job.data.train, "Give --dataset with this file: it is sent along."),
        (job.data.validation, "Put it on a claim (pvc://CLAIM/PATH) or into a ConfigMap (configmap://NAME/KEY)."),
    )
    for given, remedy in settings:
        if not given.value or (given is job.data.train and asked.dataset):
            continue
        source = uris.KEYS[given.key].parse(given.value)
        if source.scheme is Scheme.PATH and not given.value.startswith("/") and Path(given.value).exists():
            message = f"{given.value} is on this machine; the pods of a cluster do not have it."
            yield Problem(f"spec.{given.key}", "NotOnCluster", message, remedy)


def _manifest(resource: Json, cluster: Cluster) -> Json:
    """The job in its namespace: that of -n, of the file, or of the context. As with kubectl, two may not differ."""
    metadata = resource["metadata"]
    own = metadata.get("namespace")
    if own and cluster.asked and own != cluster.namespace:
        message = f"The file says namespace {own}, and -n says {cluster.namespace}."
        raise refused("metadata.namespace", "NamespaceContradiction", message, "Leave one of them out.")
    cluster.namespace = own or cluster.namespace
    return {**resource, "metadata": {**metadata, "namespace": cluster.namespace}}
