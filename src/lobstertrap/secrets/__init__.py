"""Secrets: references resolved at the last moment, each by the source that it names.

A *reference* (`SecretRef`) names a *source* (env, file, exec, prefect, target), a
*provider* (where exactly) and an id; `resolve` turns references into values, all of
them or none. docs/secrets.md has the rules.
"""

from lobstertrap.secrets.exec_source import ExecSource
from lobstertrap.secrets.resolution import Lookup, Reader, look_up, resolve
from lobstertrap.secrets.sources import EnvSource, FileSource, SecretSource

__all__ = [
    "EnvSource",
    "ExecSource",
    "FileSource",
    "Lookup",
    "Reader",
    "SecretSource",
    "look_up",
    "resolve",
]
