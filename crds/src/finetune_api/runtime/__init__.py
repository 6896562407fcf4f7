"""Interface between the operator and a run: run configuration, records, exit codes, capabilities."""
