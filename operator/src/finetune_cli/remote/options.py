"""Options of every command that talks to a cluster: -n, --context, --kubeconfig, and the name of a job."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])
CLUSTER_OPTIONS = ("namespace", "context", "kubeconfig")
COMPLETION_SECONDS = 1.0
"""The shell waits for completions: a cluster that takes longer to connect offers none."""


def on_cluster(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, and pass the Cluster that they select as its first argument.

    Errors of the cluster end the command with a message and a remedy. The client is imported when the command runs,
    not when its help is shown.
    """

    @functools.wraps(command)
    def run(*arguments: Any, **named: Any) -> Any:
        from .cluster import ClusterClient  # noqa: PLC0415
        from .errors import ApiError, Unreachable, explain  # noqa: PLC0415

        cluster = ClusterClient.connect(**{name: named.pop(name) for name in CLUSTER_OPTIONS})
        try:
            return command(cluster, *arguments, **named)
        except (ApiError, Unreachable) as error:
            raise explain(error, "" if named.get("all_namespaces") else cluster.namespace) from None

    for option in (
        click.option("--kubeconfig", metavar="FILE", help="Kubeconfig; default: $KUBECONFIG or ~/.kube/config."),
        click.option("--context", metavar="NAME", help="Context of the kubeconfig; default: the current context."),
        click.option("-n", "--namespace", metavar="NAME", help="Namespace; default: that of the context."),
    ):
        run = option(run)
    return run


def job_name(command: F) -> F:
    """Add the argument NAME, completed from the cluster."""
    return click.argument("name", shell_complete=_complete_names)(command)


def _complete_names(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of jobs; none after an error, which would only disturb the command line that is being typed."""
    from .cluster import ClusterClient  # noqa: PLC0415

    found: list[CompletionItem] = []
    try:
        options = {name: context.params.get(name) for name in CLUSTER_OPTIONS}
        for job in ClusterClient.connect(**options, connect_seconds=COMPLETION_SECONDS).jobs():
            phase = (job.get("status") or {}).get("phase", "")
            found.append(CompletionItem(job["metadata"]["name"], help=phase))
    except Exception:  # noqa: BLE001 - see above
        return []
    return [item for item in found if item.value.startswith(incomplete)]
