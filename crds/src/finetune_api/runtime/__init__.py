"""What a run is told and what it reports: run configuration, records, exit codes, capabilities."""
