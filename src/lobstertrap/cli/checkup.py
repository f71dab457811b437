"""What `doctor` looks at: versions, configuration, store, key, targets, Prefect."""

from __future__ import annotations

import importlib.metadata
import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from lobstertrap import __version__
from lobstertrap.cli.text import age, duration, size
from lobstertrap.errors import LobsterTrapError, NotFound

if TYPE_CHECKING:
    from lobstertrap.config import Config
    from lobstertrap.stores.base import ObjectStore

_SKEW_SECONDS = 60.0
"""S3 refuses signatures that are 15 minutes off; a minute is worth mending before."""

_LITTLE_BYTES = 1 << 30
_OLD_SECONDS = 7 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One part that was looked at."""

    part: str
    verdict: Literal["ok", "warning", "bad"]
    found: str
    mend: str | None = None

    def as_object(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def examine(load_config: Callable[[], Config]) -> list[Finding]:
    """Return what was found, in the order in which one would mend it."""
    findings = [*_programs()]
    try:
        config = load_config()
    except LobsterTrapError as error:
        return [*findings, _bad("configuration", error)]
    findings.append(_ok("configuration", str(config.path)))
    with ThreadPoolExecutor(8, "doctor") as pool:
        parts = [
            pool.submit(_agents, config),
            pool.submit(_stored, config),
            *(pool.submit(_target, config, name) for name in config.target_names),
            pool.submit(_prefect),
        ]
        for part in parts:
            findings += part.result()
    return findings


def _programs() -> Iterator[Finding]:
    yield _ok("lobstertrap", __version__)
    for package, extra in (("podman", "podman"), ("kubernetes", "kubernetes")):
        try:
            yield _ok(f"python package {package}", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                part=f"python package {package}",
                verdict="warning",
                found=f"not installed: no targets of kind {extra}",
                mend=f"pip install 'lobstertrap[{extra}]'",
            )


def _agents(config: Config) -> list[Finding]:
    if not config.agent_names:
        return [
            Finding(
                part="agents",
                verdict="warning",
                found=f"there is none in {config.agents_directory}",
                mend="write agents/NAME/agent.yaml (docs/agents.md), or `lobstertrap "
                "adopt TARGET`",
            )
        ]
    findings = []
    for name in config.agent_names:
        try:
            spec = config.agent(name)
            resolved = config.resolve_secrets(spec)
        except LobsterTrapError as error:
            findings.append(_bad(f"agent {name}", error))
            continue
        count = len(resolved)
        said = f"{count} secrets can be read" if count else "its spec is valid"
        findings.append(_ok(f"agent {name}", said))
    return findings


def _stored(config: Config) -> list[Finding]:
    from lobstertrap.stores.conditions import (  # noqa: PLC0415 - not for --help
        require_conditional_writes,
    )

    findings = []
    try:
        store = config.open_store()
        began = time.monotonic()
        require_conditional_writes(store)
        taken = (time.monotonic() - began) / 6  # its requests
        said = f"{store.url} honours conditions, {taken * 1000:.0f} ms a request"
        findings += [_ok("store", said), _clock(store)]
    except LobsterTrapError as error:
        return [_bad("store", error)]
    try:
        config.repository_key()
        found = config.open_repository().snapshots()
    except NotFound as error:
        hint = "lobstertrap init, or the first launch, makes it"
        return [*findings, _note("repository", error.message, hint)]
    except LobsterTrapError as error:
        return [*findings, _bad("repository", error)]
    findings.append(_ok("repository", f"the key opens it, {len(found)} snapshots"))
    if found:
        last = max(snapshot.created_at for snapshot in found)
        told = f"the last one was taken {age(last, time.time())}"
        old = time.time() - last > _OLD_SECONDS
        mend = "lobstertrap snapshot AGENT; `lobstertrap serve` takes one every hour"
        findings.append(
            _note("snapshots", told, mend) if old else _ok("snapshots", told)
        )
    return findings


def _clock(store: ObjectStore) -> Finding:
    key = f"probe/clock-{secrets.token_hex(8)}"
    try:
        store.put(key, b"what time is it")
        ahead = time.time() - store.head(key).modified
    finally:
        store.delete(key)
    if abs(ahead) <= _SKEW_SECONDS:
        return _ok("clock", "agrees with the store's")
    way = "ahead of" if ahead > 0 else "behind"
    said = f"{duration(abs(ahead))} {way} the store's"
    return _note("clock", said, "set it by NTP: timedatectl set-ntp true")


def _target(config: Config, name: str) -> list[Finding]:
    part = f"target {name}"
    try:
        info = config.target(name).inspect()
    except LobsterTrapError as error:
        return [_bad(part, error)]
    said = f"{info.kind} {info.version} on {info.platform}"
    findings = []
    if info.free_bytes is not None and info.free_bytes < _LITTLE_BYTES:
        told = f"{said}, only {size(info.free_bytes)} free"
        findings.append(_note(part, told, "free some space there"))
    elif info.free_bytes is not None:
        findings.append(_ok(part, f"{said}, {size(info.free_bytes)} free"))
    else:
        findings.append(_ok(part, said))
    return findings + [
        Finding(part=part, verdict="warning", found=note) for note in info.notes
    ]


def _prefect() -> list[Finding]:
    from lobstertrap.cli import served  # noqa: PLC0415 - not for --help
    from lobstertrap.cli.flow_server import is_configured  # noqa: PLC0415

    try:
        version = importlib.metadata.version("prefect")
    except importlib.metadata.PackageNotFoundError:
        told = "not installed: launch, snapshot and migrate run as its flows"
        return [
            Finding(
                part="prefect",
                verdict="bad",
                found=told,
                mend="pip install 'lobstertrap[prefect]'",
            )
        ]
    findings = [_ok("prefect", version)]
    if is_configured(os.environ):
        return [*findings, _chosen_server()]
    running = served.find(served.data_dir())
    if running is not None:
        findings.append(_ok("serve", f"runs at {running.url}"))
    else:
        mend = "lobstertrap serve --background: schedules, the UI, and quicker commands"
        findings.append(_note("serve", "does not run", mend))
    return findings


def _chosen_server() -> Finding:
    from lobstertrap.cli.chosen_server import (  # noqa: PLC0415 - it imports Prefect
        require_server,
    )

    try:
        return _ok("prefect server", require_server())
    except LobsterTrapError as error:
        return _bad("prefect server", error)


def _ok(part: str, found: str) -> Finding:
    return Finding(part=part, verdict="ok", found=found)


def _note(part: str, found: str, mend: str) -> Finding:
    return Finding(part=part, verdict="warning", found=found, mend=mend)


def _bad(part: str, error: LobsterTrapError) -> Finding:
    return Finding(part=part, verdict="bad", found=error.message, mend=error.hint)
