"""Spellings of one thing: each group lists the keys that mean the same, relative to spec, preferred one first.

The rules refuse a job whose spellings disagree (validation/rules.py); the plan reads the first one given.
"""

PARALLELISM = "hyperparameters.parallelism"
MODEL = ("job.model", "policy.model_name", "policy.source")
DATA = ("job.data", "job.data_path")
NODES = ("compute.nodes", "data.topology.nodes", f"{PARALLELISM}.topology.nodes")
PER_NODE = ("compute.gpus_per_node", "data.topology.gpus_per_node", f"{PARALLELISM}.topology.gpus_per_node")
TOTAL = ("compute.gpu_count", "data.topology.total_gpus", f"{PARALLELISM}.topology.total_gpus",
         "hyperparameters.world_size", "compute.topology.gpus_for_training")  # fmt: skip
TENSOR = (f"{PARALLELISM}.tensor_parallel_size", "data.topology.tensor_parallel",
          f"{PARALLELISM}.topology.tensor_parallel", "compute.topology.tensor_parallel")  # fmt: skip
PIPELINE = (f"{PARALLELISM}.pipeline_parallel_size",)
DATA_PARALLEL = ("data.topology.data_parallel", f"{PARALLELISM}.topology.data_parallel")
MICRO_BATCH = ("hyperparameters.per_device_batch", "hyperparameters.batch_size")
MAX_STEPS = ("hyperparameters.total_steps", "hyperparameters.train_steps", "hyperparameters.steps")
LENGTH = ("hyperparameters.sequence_length", "hyperparameters.max_seq_length")
LORA_R = ("hyperparameters.lora.r", "hyperparameters.lora_rank", "training.lora.r", "lora.r")
LORA_ALPHA = ("hyperparameters.lora.alpha", "hyperparameters.lora_alpha", "training.lora.alpha", "lora.alpha")
LORA_DROPOUT = ("hyperparameters.lora.dropout", "hyperparameters.lora_dropout", "training.lora.dropout",
                "lora.dropout")  # fmt: skip
LORA_TARGETS = ("hyperparameters.lora.target_modules", "hyperparameters.lora_target_modules",
                "training.lora.target_modules", "lora.target_modules")  # fmt: skip

GROUPS = (MODEL, DATA, NODES, PER_NODE, TOTAL, TENSOR, DATA_PARALLEL, MICRO_BATCH, MAX_STEPS, LENGTH,
            LORA_R, LORA_ALPHA, LORA_DROPOUT, LORA_TARGETS)  # fmt: skip
