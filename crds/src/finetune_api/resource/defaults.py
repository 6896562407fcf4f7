"""Defaults: the value of each key that a job leaves out.

Each default is written here once: the descriptions of the keys name it, and the plan fills it in.

The schema itself has no defaults: they would be written into stored jobs, and a later version would change what a
queued job means.
"""

from __future__ import annotations

SEQUENCE_LENGTH = 2048
"""Tokens, or the model's own limit if that is smaller."""
LEARNING_RATE_FFT, LEARNING_RATE_ADAPTERS = 1e-5, 2e-4
"""Peak learning rates. Full finetuning takes about a twentieth of what adapters take (docs/adr/0009)."""
OPTIMIZER = "adamw"
SCHEDULER = "cosine"
WARMUP_RATIO = 0.03
WEIGHT_DECAY = 0.0
MAX_GRAD_NORM = 1.0
EPOCHS = 1

LORA_RANK = 16
LORA_ALPHA_PER_RANK = 2
LORA_DROPOUT = 0.0
LORA_TARGETS = "all-linear"
LORA_INIT = "default"
LORA_BIAS = "none"
QUANTISATION_FORMAT = "nf4"
DOUBLE_QUANT = True

ON_BAD_ROW = "refuse"
MAX_BAD_SHARE = 0.01
SEED = 42
SAVE_TOTAL_LIMIT = 2
LOGGING_STEPS = 1

DEEPSPEED_STAGE = 2
OFFLOAD = "none"
FSDP_SHARDING_STRATEGY = "full_shard"
ROUNDING, WEIGHTS = "stochastic", "fp32"
ACTIVATION_CHECKPOINTING = "auto"

MAX_RESTARTS = 3
BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 10.0, 600.0
"""Delay of a restart after the first failure of a cause, and the longest; doubled in between."""
MAX_FREE_RESTARTS = 10
"""Restarts that cost nothing and follow each other without a new checkpoint."""
TOKEN_KEY = "token"  # noqa: S105 - the name of a key in a Secret
"""Key of a Hugging Face token inside its Secret."""
