"""After SIGTERM the operator ends by itself, whatever in it does not."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import operating
from operating.process import OperatorProcess
from operating.team import Team
from testbed.control_plane import ControlPlane

DISOBEDIENT = Path(operating.__file__).with_name("disobedient.py")


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [("task", 0, ""), ("thread", 1, "did not end in time")],
    ids=["a task that loses a cancellation", "a thread that never comes back"],
)
def test_what_does_not_end_does_not_keep_the_process(
    control_plane: ControlPlane, namespace: str, tmp_path: Path, what: str, code: int, said: str
) -> None:
    team = Team(control_plane.cluster.api, namespace)
    settings = {"WATCH_NAMESPACE": namespace, "OWN_NAMESPACE": namespace}
    program = (str(DISOBEDIENT), what)
    with OperatorProcess(control_plane.cluster.kubeconfig, tmp_path, settings, program) as operator:
        team.submit()
        team.until(lambda status: status.get("phase"))  # its watches run
        operator.signal(signal.SIGUSR1)
        operator.answer("healthz")  # its loop has turned: what does not end has begun
        assert operator.end() == code
        assert said in {"", operator.lines()[-1]["message"]}
