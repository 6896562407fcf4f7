"""The command line as tests call it: arguments in, exit code and both outputs out."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from finetune_cli.main import cli

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FinetuneJob
metadata:
  name: sample
spec:
  job:
    model: org/name
    data: train.jsonl
  compute:
    gpu_type: CPU
  training:
    mode: lora
  output: {ephemeral: true}
"""
"""A job that is fine. Line numbers of tests count from here."""
ROW = '{"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}\n'


def finetune(*arguments: str | Path, stdin: str | None = None) -> Result:
    """`finetune ARGUMENTS`, in this process."""
    return CliRunner().invoke(cli, [str(each) for each in arguments], prog_name="finetune", input=stdin)


def job(folder: Path, *replacements: tuple[str, str], name: str = "job.yaml") -> Path:
    """A file with JOB in which each first text is replaced by its second."""
    text = JOB
    for old, new in replacements:
        assert old in text, f"{old!r} is not in the job"
        text = text.replace(old, new)
    path = folder / name
    path.write_text(text)
    return path


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, with the content of files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}
