"""The operator killed, delayed and blinded at every write of a job's life; run by `make chaos`."""
