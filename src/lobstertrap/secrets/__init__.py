"""Secrets: references resolved at the last moment, from env and file providers."""
