"""Resolving references: every value, or one error that names every reference."""

from __future__ import annotations

import contextvars
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lobstertrap.errors import SecretMissing
from lobstertrap.redaction import SecretValue, redactor
from lobstertrap.secret_ref import SecretRef
from lobstertrap.secrets.exec_source import ExecSource
from lobstertrap.secrets.sources import (
    EnvSource,
    FileSource,
    Found,
    SecretSource,
    checked,
    each,
)

Providers = Mapping[str, Mapping[str, Any]]
"""By name what [secrets.providers] says, with absolute paths; see config_file."""

Reader = Callable[[str], str]
"""Reads a value from where the domain cannot; raises `SecretMissing` with a reason."""

_AT_ONCE: Final = 4
_MOST: Final = 512
"""References of one provider in one resolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """What became of each reference, by the name that it has."""

    values: Mapping[str, SecretValue] = field(repr=False)
    problems: Mapping[str, str]
    """Why there is no value; names and reasons, never values."""


def resolve(
    refs: Mapping[str, SecretRef],
    providers: Providers,
    environ: Mapping[str, str],
    readers: Mapping[str, Reader] | None = None,
) -> dict[str, SecretValue]:
    """Return the values by the names that `refs` has, and teach the redactor each.

    References of source `target` are left out: their values never pass through here.
    Raises `SecretMissing` with one line for each one that cannot be resolved.
    """
    found = look_up(refs, providers, environ, readers)
    if found.problems:
        lines = [f"secret {n} ({refs[n]}): {why}" for n, why in found.problems.items()]
        raise SecretMissing(
            "\n".join(lines),
            hint="set the variables, or mend what [secrets.providers] names",
        )
    return dict(found.values)


def look_up(
    refs: Mapping[str, SecretRef],
    providers: Providers,
    environ: Mapping[str, str],
    readers: Mapping[str, Reader] | None = None,
) -> Lookup:
    """Resolve what can be resolved; each provider is asked once, a few at a time."""
    groups: dict[tuple[str, str], set[str]] = defaultdict(set)
    for ref in refs.values():
        if ref.source != "target":
            groups[ref.source, ref.provider].add(ref.id)

    def ask(key: tuple[str, str], ids: Sequence[str]) -> Found:
        try:
            source = _source(*key, providers, environ, readers or {})
            if len(ids) > _MOST:
                raise SecretMissing(f"more than {_MOST} are asked of one provider")
        except SecretMissing as error:
            return dict.fromkeys(ids, error)
        return source.read_all(ids)

    with ThreadPoolExecutor(_AT_ONCE, "secrets") as pool:
        asked = {
            # A reader may need what its caller has in its context: Prefect's client.
            key: pool.submit(contextvars.copy_context().run, ask, key, sorted(ids))
            for key, ids in groups.items()
        }
        answers = {key: future.result() for key, future in asked.items()}
    values: dict[str, SecretValue] = {}
    problems: dict[str, str] = {}
    for name, ref in refs.items():
        if ref.source == "target":
            continue
        found = answers[ref.source, ref.provider][ref.id]
        if isinstance(found, SecretMissing):
            problems[name] = found.message
        else:
            values[name] = found
            redactor.add(found)
    return Lookup(values=values, problems=problems)


def _source(
    kind: str,
    name: str,
    providers: Providers,
    environ: Mapping[str, str],
    readers: Mapping[str, Reader],
) -> SecretSource:
    if kind == "prefect":
        if kind not in readers:
            raise SecretMissing("Prefect's blocks cannot be read from here")
        return _Foreign(read=readers[kind])
    provider = providers.get(name)
    if provider is None:
        if kind == "env" and name == "default":
            return EnvSource(environ=environ)
        raise SecretMissing(f"there is no provider '{name}'")
    if provider.get("source") != kind:
        raise SecretMissing(f"provider '{name}' is not of source {kind}")
    return _OPENERS[kind](name, provider, environ)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Foreign:
    """A source that somebody else reads."""

    read: Reader

    def read_all(self, ids: Iterable[str]) -> Found:
        return each(ids, lambda secret_id: checked(self.read(secret_id), "its value"))


def _env(
    _name: str, provider: Mapping[str, Any], environ: Mapping[str, str]
) -> SecretSource:
    return EnvSource(environ=environ, allowed=provider.get("allowlist"))


def _file(
    _name: str, provider: Mapping[str, Any], _environ: Mapping[str, str]
) -> SecretSource:
    return FileSource(
        path=Path(str(provider["path"])).expanduser(),
        mode=provider.get("mode", "json"),
        seconds=provider.get("timeout_ms", 5000) / 1000,
        largest=provider.get("max_bytes", 2**20),
    )


def _exec(
    name: str, provider: Mapping[str, Any], environ: Mapping[str, str]
) -> SecretSource:
    passed = {n: environ[n] for n in provider.get("pass_env", ()) if n in environ}
    timeout = provider.get("timeout_ms", 5000)
    return ExecSource(
        provider=name,
        command=Path(str(provider["command"])).expanduser(),
        arguments=provider.get("args", ()),
        environ={**passed, **provider.get("env", {})},
        seconds=timeout / 1000,
        silent_seconds=(provider.get("no_output_timeout_ms") or timeout) / 1000,
        largest=provider.get("max_output_bytes", 2**20),
        json_only=provider.get("json_only", True),
        trusted=[Path(d).expanduser() for d in provider.get("trusted_dirs", ())],
    )


_OPENERS: Final = {"env": _env, "file": _file, "exec": _exec}
