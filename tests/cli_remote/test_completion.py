"""Names of jobs complete in a shell, and through kubectl."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli_remote.calls import Console
from finetune_cli.main import VERBS
from operating.team import Team


def kubectl_completes(console: Console, *words: str) -> list[str]:
    """What kubectl asks of a plugin: the words after `kubectl finetune`, the last one unfinished."""
    program = Path(sys.executable).with_name("kubectl_complete-finetune")
    env = os.environ | {"KUBECONFIG": str(console.kubeconfig)}
    return subprocess.run([program, *words], env=env, capture_output=True, text=True, check=True).stdout.splitlines()


def test_verbs_options_and_jobs_complete_through_kubectl(team: Team, console: Console) -> None:
    for name in ("alpha", "beta"):
        team.submit({"suspend": True}, name=name)
        team.until_phase("Suspended", name)
    assert [line.split("\t")[0] for line in kubectl_completes(console, "sus")] == ["suspend", ":4"]
    assert kubectl_completes(console, "status", "-n", team.namespace, "") == [
        "alpha\tSuspended",
        "beta\tSuspended",
        ":4",
    ]
    assert kubectl_completes(console, "status", "-n", team.namespace, "be") == ["beta\tSuspended", ":4"]
    assert [line.split("\t")[0] for line in kubectl_completes(console, "logs", "--fo")] == ["--follow", ":4"]


def test_files_complete_as_files(console: Console) -> None:
    assert kubectl_completes(console, "submit", "") == [":0"]


def test_a_cluster_that_does_not_answer_completes_nothing(console: Console) -> None:
    env = os.environ | {"KUBECONFIG": "/nowhere", "_FINETUNE_COMPLETE": "bash_complete",
                        "COMP_WORDS": "finetune status ", "COMP_CWORD": "2"}  # fmt: skip
    program = Path(sys.executable).with_name("finetune")
    done = subprocess.run([program], env=env, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_jobs_too(shell: str, team: Team, console: Console) -> None:
    team.submit({"suspend": True}, name="alpha")
    words = f"finetune status -n {team.namespace} "
    env = os.environ | {"KUBECONFIG": str(console.kubeconfig), "_FINETUNE_COMPLETE": f"{shell}_complete",
                        "COMP_WORDS": words, "COMP_CWORD": "" if shell == "fish" else "4"}  # fmt: skip
    program = Path(sys.executable).with_name("finetune")
    done = subprocess.run([program], env=env, capture_output=True, text=True, check=False)
    assert "alpha" in done.stdout


def test_the_help_of_a_verb_needs_no_client_of_the_cluster() -> None:
    script = (
        "import sys; from finetune_cli.main import cli; cli(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    )
    for verb in ("submit", "list", "logs", "fetch"):
        done = subprocess.run([sys.executable, "-c", script, verb, "-h"], capture_output=True, text=True, check=True)
        loaded = set(done.stdout.split())
        assert f"finetune_cli.verbs.{VERBS[verb].module}" in loaded
        assert not loaded & {"kubernetes", "urllib3", "rich", "finetune_data"}
