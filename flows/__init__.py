"""Flows: the order of steps and their compensation, and nothing else."""
