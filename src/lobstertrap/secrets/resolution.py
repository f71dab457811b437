"""Resolving references: every value, or one error that names every reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lobstertrap.agent import SecretRef
from lobstertrap.errors import SecretMissing
from lobstertrap.redaction import SecretValue, redactor
from lobstertrap.secrets.sources import EnvSource, FileSource, SecretSource

Providers = Mapping[str, Mapping[str, Any]]
"""By name: `{"source": "env"}`, or `{"source": "file", "path": P, "mode": M}`."""


def resolve(
    refs: Mapping[str, SecretRef], providers: Providers, environ: Mapping[str, str]
) -> dict[str, SecretValue]:
    """Return the values by the names that `refs` has, and teach the redactor each.

    References of source `target` are left out: their values never pass through here.
    Raises `SecretMissing` with one line for each one that cannot be resolved.
    """
    values: dict[str, SecretValue] = {}
    problems: list[str] = []
    for name, ref in refs.items():
        if ref.source == "target":
            continue
        try:
            values[name] = _source(ref, providers, environ).read(ref.id)
        except SecretMissing as error:
            problems.append(f"secret {name} ({ref}): {error.message}")
        else:
            redactor.add(values[name])
    if problems:
        raise SecretMissing(
            "\n".join(problems),
            hint="set the variables, or mend the files of [secrets.providers]",
        )
    return values


def _source(
    ref: SecretRef, providers: Providers, environ: Mapping[str, str]
) -> SecretSource:
    provider = providers.get(ref.provider)
    if provider is None:
        if ref.source == "env" and ref.provider == "default":
            return EnvSource(environ=environ)
        raise SecretMissing(f"there is no provider '{ref.provider}'")
    if provider.get("source") != ref.source:
        raise SecretMissing(f"provider '{ref.provider}' is not of source {ref.source}")
    if ref.source == "env":
        return EnvSource(environ=environ)
    path = Path(str(provider["path"])).expanduser()
    return FileSource(path=path, mode=provider.get("mode", "json"))
