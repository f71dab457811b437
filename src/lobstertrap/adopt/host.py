"""Originals on this machine: an OpenClaw that keeps its state in the home directory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lobstertrap.adopt.found import OPENCLAW_PORT, Found, Mount, refuse_other_sources
from lobstertrap.errors import NotFound, Refused
from lobstertrap.lease import Adopted
from lobstertrap.redaction import SecretValue

_IMAGE = "ghcr.io/openclaw/openclaw"
_STATE = ".openclaw"
_PATH = "/home/node/.openclaw"
_VERSION = re.compile(r"\d[\w.-]{0,40}")
_SHORTHAND = re.compile(r"\$\{([A-Z][A-Z0-9_]{0,127})\}")
_CONFIG_BYTES = 4 * 2**20
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOriginals:
    """The OpenClaw of the user whose home directory this is; see `Originals`."""

    home: Path
    target: str
    processes: Path = Path("/proc")

    def find(self) -> list[Found]:
        """Return `~/.openclaw`, if it is there."""
        state = self.home / _STATE
        if not state.is_dir():
            return []
        config = _read_config(state / "openclaw.json")
        return [describe(state, config, running=bool(self._pids(state)))]

    def keep_secret(
        self, found: Found, *, env: str, secret: str, value: SecretValue | None
    ) -> None:
        """Refuse: a host keeps no secrets, so none are moved."""
        del secret, value
        raise NotFound(f"{found.original}: a host target cannot keep {env}")

    def confirm(self, adopted: Adopted) -> None:
        """It can only be the one directory."""
        refuse_other_sources(adopted, [str(self.home / _STATE)])

    def users(self, adopted: Adopted) -> list[str]:
        """Return the processes that have a file of the state open."""
        return [
            f"process {pid}"
            for source in adopted.sources.values()
            for pid in self._pids(Path(source))
        ]

    def has_state(self, adopted: Adopted) -> bool:
        """Whether the directory is there."""
        return all(Path(source).is_dir() for source in adopted.sources.values())

    def refuse_lasting(self, adopted: Adopted) -> None:
        """Refuse while it runs: who started it is not known, and may do so again."""
        self.stop(adopted, seconds=0)

    def stop(self, adopted: Adopted, *, seconds: float) -> None:
        """Refuse while it runs: only a person knows how it was started."""
        del seconds
        users = self.users(adopted)
        if users:
            raise Refused(
                f"{adopted.original} is in use: {', '.join(users[:_SHOWN])}",
                hint="openclaw gateway stop (and `systemctl --user disable --now "
                "openclaw-gateway`, if it is a service); then the same command again",
            )

    def start(self, adopted: Adopted) -> None:
        """Refuse; it is never stopped from here."""
        raise NotFound(f"{adopted.original} was not started by lobstertrap")

    def retire(self, adopted: Adopted) -> None:
        """Rename the directory, so that it is not started from by habit."""
        for source in map(Path, adopted.sources.values()):
            if source.exists() or source.is_symlink():
                source.rename(_free_name(source))

    def _pids(self, state: Path) -> list[int]:
        inside = f"{state.resolve()}/"
        return sorted(
            int(process.name)
            for process in self.processes.glob("[0-9]*")
            if any(path.startswith(inside) for path in _open_files(process))
        )


def describe(state: Path, config: Any, *, running: bool) -> Found:
    """Return what an OpenClaw with this configuration is."""
    settings = config if isinstance(config, dict) else {}
    version = str((_part(settings, "meta")).get("lastTouchedVersion", ""))
    tag = version if _VERSION.fullmatch(version) else "latest"
    named = sorted(set(_named(settings)))
    gateway = ("gateway", "--bind", "lan", "--port", "{ports.gateway}")
    warnings = [
        f"the digest of the image {_IMAGE}:{tag}: name it by digest before it moves",
        "values in its own .env: set those variables where lobstertrap runs",
    ]
    return Found(
        original=str(state),
        made_by="OpenClaw",
        name="openclaw",
        running=running,
        mounts=(Mount(path=_PATH, source=str(state)),),
        image=f"{_IMAGE}:{tag}",
        command=("node", "openclaw.mjs", *gateway),
        host_command=("openclaw", "gateway", "run", "--bind", "loopback", *gateway[3:]),
        env={"OPENCLAW_STATE_DIR": "{volumes.openclaw}"},
        named=tuple(named),
        ports=((OPENCLAW_PORT, None),),
        is_openclaw=True,
        warnings=tuple(warnings),
    )


def _part(settings: dict[str, Any], name: str) -> dict[str, Any]:
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def _named(value: Any) -> Iterator[str]:
    """Yield the variables that a configuration names, by reference or shorthand."""
    if isinstance(value, dict):
        if value.get("source") == "env" and isinstance(value.get("id"), str):
            yield from _SHORTHAND.findall(f"${{{value['id']}}}")
        for item in value.values():
            yield from _named(item)
    elif isinstance(value, list):
        for item in value:
            yield from _named(item)
    elif isinstance(value, str):
        yield from _SHORTHAND.findall(value)


def _read_config(path: Path) -> Any:
    """Return the configuration; nothing of one that is not plain JSON."""
    try:
        with path.open("rb") as file:
            return json.loads(file.read(_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}


def _open_files(process: Path) -> Iterator[str]:
    """Yield what a process has open, as far as it may be seen."""
    try:
        for link in (process / "fd").iterdir():
            yield str(link.readlink())
    except OSError:
        return


def _free_name(path: Path) -> Path:
    free, number = path.with_name(f"{path.name}.adopted"), 2
    while free.exists() or free.is_symlink():
        free = path.with_name(f"{path.name}.adopted-{number}")
        number += 1
    return free
