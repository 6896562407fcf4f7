"""The program in the pods: one launcher per node (__main__), one process per rank (worker), one training loop.

__main__ -> config -> preparation -> launch -> outcome -> publish      a node, without torch
                         handoff |  ^ exit code and report of each rank
worker -> environment -> trainer -> model, adapters -> engines -> loop    a rank
                         checkpoint, result, identity <- hooks
"""
