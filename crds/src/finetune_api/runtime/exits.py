"""Exit codes of the trainer and what each means for the operator and the CLI.

The trainer ends with one of these; the operator and `finetune run` read the meaning from the same table.
Codes above 128 are signals (128 + number) and are read as such.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Retry(StrEnum):
    """Whether another run may succeed."""

    NEVER = "never"
    """The same job fails the same way: the input has to change first."""
    BUDGET = "budget"
    """Another run may succeed; it costs one of `lifecycle.maxRestarts`."""
    FREE = "free"
    """Not the job's fault: another run costs nothing."""


class Exit(IntEnum):
    """How a trainer process ends."""

    OK = 0
    CRASHED = 1
    CONFIG_REFUSED = 2
    DATA_REFUSED = 3
    MODEL_REFUSED = 4
    OUTPUT_REFUSED = 5
    UNSUPPORTED = 6
    NON_FINITE = 7
    OUT_OF_MEMORY = 8
    PEER_LOST = 9
    STORAGE_FAILED = 10
    SOURCE_UNAVAILABLE = 11
    HARDWARE_FAILED = 12
    STALLED = 13
    STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped on request, a checkpoint is written, try again later


@dataclass(frozen=True)
class Meaning:
    """What an exit code means: a CamelCase reason, whether to retry, one sentence, and the remedy."""

    reason: str
    retry: Retry
    sentence: str
    remedy: str


MEANINGS: dict[Exit, Meaning] = {
    Exit.OK: Meaning("Succeeded", Retry.NEVER, "The run finished and its output is complete.", ""),
    Exit.CRASHED: Meaning(
        "TrainerCrashed",
        Retry.BUDGET,
        "The trainer failed with an unexpected error.",
        "Read the log of the rank named in the message.",
    ),
    Exit.CONFIG_REFUSED: Meaning(
        "ConfigRefused",
        Retry.NEVER,
        "The run configuration is wrong or contradicts itself.",
        "Correct the key that the message names.",
    ),
    Exit.DATA_REFUSED: Meaning(
        "DataRefused",
        Retry.NEVER,
        "The dataset has rows that cannot be trained on.",
        "Correct the lines that the message names, or set data.on_bad_row: skip.",
    ),
    Exit.MODEL_REFUSED: Meaning(
        "ModelRefused",
        Retry.NEVER,
        "The base model could not be loaded as asked.",
        "Correct job.model, or give the job the credentials to read it.",
    ),
    Exit.OUTPUT_REFUSED: Meaning(
        "OutputRefused",
        Retry.NEVER,
        "The output folder holds another job's run.",
        "Choose another output, or restore the keys that the message names.",
    ),
    Exit.UNSUPPORTED: Meaning(
        "Unsupported",
        Retry.NEVER,
        "This version of the trainer does not support what the job asks for.",
        "Choose one of the combinations that the message lists.",
    ),
    Exit.NON_FINITE: Meaning(
        "NonFinite",
        Retry.NEVER,
        "The loss or the gradient became NaN or infinite.",
        "Lower hyperparameters.learning_rate, lengthen the warmup, or check the rows named in the message.",
    ),
    Exit.OUT_OF_MEMORY: Meaning(
        "OutOfMemory",
        Retry.NEVER,
        "A device ran out of memory.",
        "Lower hyperparameters.per_device_batch first, then sequence_length; "
        "or set activation_checkpointing to full, shard with FSDP, or add GPUs.",
    ),
    Exit.PEER_LOST: Meaning(
        "PeerLost",
        Retry.BUDGET,
        "Another rank exited or became unreachable.",
        "Find the rank that failed first: its report names the cause.",
    ),
    Exit.STORAGE_FAILED: Meaning(
        "StorageFailed",
        Retry.BUDGET,
        "A volume could not be written or read.",
        "Free space on the volume that the message names, or check that it is mounted and writable.",
    ),
    Exit.SOURCE_UNAVAILABLE: Meaning(
        "SourceUnavailable",
        Retry.BUDGET,
        "The model could not be downloaded for now: the Hub was overloaded, failed, or could not be reached.",
        "Wait, or check the network and HF_ENDPOINT; a token raises the Hub's rate limit.",
    ),
    Exit.HARDWARE_FAILED: Meaning(
        "HardwareFailed",
        Retry.FREE,
        "A GPU of the node has failed.",
        "Have the node checked (`nvidia-smi -q`, Xid lines of `dmesg`); the operator's next run avoids it.",
    ),
    Exit.STALLED: Meaning(
        "Stalled",
        Retry.BUDGET,
        "The ranks stopped making progress and were killed.",
        "Read the stacks in the log: what the ranks wait for does not respond (a volume, the network, a device), or "
        "a rank that is behind holds up the others. If steps take that long, have settings.stallSeconds raised.",
    ),
    Exit.STOPPED: Meaning(
        "Stopped",
        Retry.FREE,
        "The run was stopped on request.",
        "Start it again: it continues from its last checkpoint, if there is one.",
    ),
}


_SIGNALS = {
    7: "Signal 7 is a file that was cut off while it was read, such as one of the model, a volume that failed, or a "
    "full /dev/shm: leave the files as they are, or raise pods.sharedMemory.",
    9: "Signal 9 is most often the memory limit of the pod: raise pods.memory.",
}


def meaning(code: int) -> Meaning:
    """The meaning of any exit code, signals and unknown codes included."""
    if code in {int(e) for e in Exit}:
        return MEANINGS[Exit(code)]
    if code > 128:
        return Meaning(
            "Killed",
            Retry.BUDGET,
            f"The trainer was killed by signal {code - 128}.",
            _SIGNALS.get(code - 128, "The log of the trainer says more."),
        )
    return MEANINGS[Exit.CRASHED]
