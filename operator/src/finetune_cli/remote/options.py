"""What every verb on a cluster takes: -n, --context, --kubeconfig, and the name of a job."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from .cluster import Cluster

F = TypeVar("F", bound=Callable[..., Any])
COMPLETION_SECONDS = 1.0
"""A shell waits for completions: a cluster that does not answer has none."""


def on_cluster(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the options and, as its first argument, the Cluster that they lead to.

    Errors of the cluster end the verb with a sentence and a remedy. The client is imported when the verb runs, not
    when its help is shown.
    """

    @functools.wraps(command)
    def run(*arguments: Any, **named: Any) -> Any:
        from .cluster import Cluster  # noqa: PLC0415
        from .errors import ApiError, Unreachable, told  # noqa: PLC0415

        cluster = Cluster.of(_login(named))
        try:
            return command(cluster, *arguments, **named)
        except (ApiError, Unreachable) as error:
            raise told(error, "" if named.get("everywhere") else cluster.namespace) from None

    for option in (
        click.option("--kubeconfig", metavar="FILE", help="As kubectl's; KUBECONFIG or ~/.kube/config if absent."),
        click.option("--context", metavar="NAME", help="Context of the kubeconfig; the current one if absent."),
        click.option("-n", "--namespace", metavar="NAME", help="Namespace; that of the context if absent."),
    ):
        run = option(run)
    return run


def job_name(command: F) -> F:
    """Give a verb the argument NAME, completed from the cluster."""
    return click.argument("name", shell_complete=_names)(command)


def _login(named: dict[str, Any]) -> Any:
    from .server import Login  # noqa: PLC0415

    return Login(named.pop("namespace", None), named.pop("context", None), named.pop("kubeconfig", None))


def _names(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of jobs. Nobody reads errors while completing, so there are none."""
    from .cluster import Cluster  # noqa: PLC0415

    found: list[CompletionItem] = []
    try:
        cluster: Cluster = Cluster.of(_login(dict(context.params)), connect_seconds=COMPLETION_SECONDS)
        for job in cluster.jobs():
            phase = (job.get("status") or {}).get("phase", "")
            found.append(CompletionItem(job["metadata"]["name"], help=phase))
    except Exception:  # noqa: BLE001 - a traceback in the middle of a line that is being typed helps nobody
        return []
    return [item for item in found if item.value.startswith(incomplete)]
