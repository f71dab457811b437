"""A real single-node Kubernetes for tests: started in seconds, gone without a trace."""
