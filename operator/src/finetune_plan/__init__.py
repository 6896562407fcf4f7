"""Desired objects of a job, and its status: pure functions, no clock, no I/O, no randomness.

resolve   job + settings        -> every decision, with its reason (method, layout, batch, engine ...)
workload  resolution            -> replicas, command, environment, volumes; knows no backend
backends  workload              -> the manifest of a run
validate  any mapping           -> everything that is wrong with it, at once
status    resolution + records  -> what the status says
"""
