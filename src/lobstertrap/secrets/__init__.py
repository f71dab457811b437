"""Secrets: references resolved at the last moment, from env and file providers.

A *reference* (`SecretRef`) names a *source* (env, file, target), a *provider* (where
exactly) and an id; `resolve` turns references into values, all of them or none.
"""

from lobstertrap.secrets.resolution import resolve
from lobstertrap.secrets.sources import EnvSource, FileSource, SecretSource

__all__ = ["EnvSource", "FileSource", "SecretSource", "resolve"]
