"""The program in the pods: one launcher per node (node), one process per rank (worker), one training loop.

node -> config -> preparation -> launch -> outcome -> publish          a node, without torch
                         handoff |  ^ exit code and report of each rank
worker -> environment -> trainer -> model, adapters -> engines -> loop    a rank
                         checkpoint, result, identity <- hooks
merging -> lora_files, merge <- result                                    `finetune merge`
"""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it; it warns of kernels for decoding
