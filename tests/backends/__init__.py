"""The contract that every backend passes on the real API server, and a second backend that passes it too."""
