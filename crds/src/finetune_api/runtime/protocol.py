"""The protocol between a trainer and its launcher: environment variables, and files in the output.

The trainer writes the files; the CLI, the operator and people read them.
"""

CONFIG_ENV = "FINETUNE_RUN_CONFIG"
"""Environment variable with the path of the run configuration."""
REPORT_ENV = "FINETUNE_REPORT"
"""Environment variable with the path that the final report is written to besides the output
(the termination message of a pod)."""
NODE_RANK_ENV = "PET_NODE_RANK"
NODES_ENV = "PET_NNODES"
MASTER_ADDR_ENV = "PET_MASTER_ADDR"
MASTER_PORT_ENV = "PET_MASTER_PORT"
"""Set on every pod, and by `finetune run` on every local replica."""
PROCESSES_ENV = "PET_NPROC_PER_NODE"
"""Set on every pod by the backend: ranks of one node, or a word such as `auto`."""
STALL_ENV = "FINETUNE_STALL_SECONDS"
"""Seconds without progress that are never a stall; 0: none is. Longer silences may not be either (ADR 31)."""
STALL_SECONDS = 600
"""Where the variable is absent."""

RUN_FILE = "run.json"
"""Identity of the run that owns the folder, written before anything else."""
CHECKPOINTS = "checkpoints"
"""Holds step-00000020/ and the like. A checkpoint exists when its marker exists."""
MARKER = "COMPLETE"
"""Inside a checkpoint or result: written last, removed first."""
RESULT = "result"
"""The PEFT adapter, or the model as a Hugging Face folder."""
MERGED = "merged"
"""Inside a result that is an adapter: its base with the adapter merged, as a Hugging Face folder."""
RECORDS = "records.jsonl"
"""Every record of every run of this job, in order (see report.py)."""
REPORT = "report.json"
"""The final report of the last run."""
