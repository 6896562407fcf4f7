"""A real Kubernetes for the tests: real API server, real Training Operator, no fakes; see cluster.py."""
