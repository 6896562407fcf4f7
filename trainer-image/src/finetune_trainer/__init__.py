"""The program in the pods: one launcher per node (__main__), one process per rank (worker), one loop.

__main__ -> config -> preparation -> launch -> verdict -> publish      a node, without torch
                         handoff |  ^ how each rank ended
worker -> environment -> job -> model, adapters -> engines -> loop     a rank
                          checkpoint, result, identity <- hooks
"""
