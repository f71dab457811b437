"""Targets: the places where an agent runs (host process, Podman, Kubernetes)."""
