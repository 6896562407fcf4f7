"""How long the command line takes to answer: median of 10 starts of each command, in milliseconds.

`make bench-cli`. Processes are new each time; bytecode is compiled by a first start that does not count, as
an installed package has it. The exit code is 1 if a median is over its limit.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STARTS = 10
LIMITS = {"--help": 150, "validate": 300}
JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FinetuneJob
metadata: {name: sample}
spec:
  job: {model: Qwen/Qwen3-4B, data: pvc://rows/train.jsonl}
  compute: {gpu_type: H100, gpu_count: 8}
  output: {uri: pvc://models/out}
  hyperparameters: {learning_rate: 8e-6, n_epochs: 2}
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.yaml"
        job.write_text(JOB)
        commands = {"--help": ["--help"], "validate": ["validate", str(job)]}
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = f"{folder}/bytecode"  # the source tree stays as it is
        medians = {name: _median(arguments, environment) for name, arguments in commands.items()}
    for name, median in medians.items():
        print(f"finetune {name}: median of {STARTS} is {median:.0f} ms (limit {LIMITS[name]} ms)")
    return int(any(median > LIMITS[name] for name, median in medians.items()))


def _median(arguments: list[str], environment: dict[str, str]) -> float:
    program = Path(sys.executable).with_name("finetune")
    times = []
    for _ in range(STARTS + 1):
        begun = time.perf_counter()
        subprocess.run([program, *arguments], env=environment, stdout=subprocess.DEVNULL, check=True)
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times[1:])


if __name__ == "__main__":
    sys.exit(main())
