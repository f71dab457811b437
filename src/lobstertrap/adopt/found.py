"""What was found of an agent that somebody else deployed, and who looks after it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from lobstertrap.errors import Refused
from lobstertrap.lease import Adopted
from lobstertrap.redaction import SecretValue

OPENCLAW_PORT = 18789
OPENCLAW_STOP_SECONDS = 330.0  # it ends a turn that has begun
OPENCLAW_MEMORY = 2 * 2**30
OPENCLAW_PIDS = 512
OPENCLAW_CACHES = ("cache/", "tmp/", "plugin-skills/")
"""What OpenClaw makes again by itself, below its state directory."""
_LONGEST_NAME = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A directory of state in the original."""

    path: str
    """Where the original sees it."""
    source: str
    """Where a mover finds it; see `MoverJob.sources`."""
    size: int | None = None
    """Bytes that it may grow to, when that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One original, in terms that every kind of target has."""

    original: str
    """Its name on the target: unique there, and for people."""
    made_by: str
    name: str
    """What an agent made of it would be called."""
    running: bool
    mounts: tuple[Mount, ...]
    image: str | None = None
    command: tuple[str, ...] = ()
    host_command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Plain values; some of them may be secrets."""
    held: Mapping[str, str] = field(default_factory=dict)
    """By variable: the id of a secret that the target keeps already."""
    named: tuple[str, ...] = ()
    """Variables that it reads a secret from, whose value is nowhere on the target."""
    ports: tuple[tuple[int, int | None], ...] = ()
    """Its own port, and the one that people know, if that is fixed."""
    health: Mapping[str, Any] | None = None
    owner: tuple[int, int] = (1000, 1000)
    hostname: str | None = None
    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    read_only_root: bool = False
    capabilities: tuple[str, ...] = ()
    tmpfs: tuple[str, ...] = ()
    stop_seconds: float | None = None
    is_openclaw: bool = False
    obstacle: str = ""
    """Why no spec can be made of it, in words."""
    warnings: tuple[str, ...] = ()
    """What a spec cannot carry over, in words."""


def refuse_other_sources(adopted: Adopted, own: Iterable[str]) -> None:
    """Raise `Refused` when the record names what is not among the original's `own`."""
    strange = sorted({*adopted.sources.values()} - {*own})
    if strange:
        raise Refused(
            f"{', '.join(strange)} is no state of {adopted.original} on "
            f"'{adopted.target}', though the agent's record says so",
            hint="has the original been changed? Adopt it again; if not, somebody has "
            "written to the store",
        )


class Originals(Protocol):
    """The originals of one target.

    Only `stop`, `start`, `retire` and `keep_secret` change anything; each may be
    repeated. What takes an `Adopted` works also when the original is gone.
    """

    def find(self) -> list[Found]:
        """Return every original, each with a name of its own."""

    def keep_secret(
        self, found: Found, *, env: str, secret: str, value: SecretValue | None
    ) -> None:
        """Let the target keep a value as `secret`, where our agent can use it.

        Without a value it is the one that the original gets from `found.held`.
        """

    def confirm(self, adopted: Adopted) -> None:
        """Raise `Refused` unless the sources are the original's own.

        The record is not sealed: who may write to the store could have put anything
        there, and a mover that runs as root would read it.
        """

    def users(self, adopted: Adopted) -> list[str]:
        """Return what runs (or may) on the original's state, the original first."""

    def has_state(self, adopted: Adopted) -> bool:
        """Whether every directory of the original is still there."""

    def refuse_lasting(self, adopted: Adopted) -> None:
        """Raise `Refused` when something would start a stopped original again."""

    def stop(self, adopted: Adopted, *, seconds: float) -> None:
        """Stop the original, within its grace; proven, or `Refused`."""

    def start(self, adopted: Adopted) -> None:
        """Start the stopped original again."""

    def retire(self, adopted: Adopted) -> None:
        """Make sure that the stopped original stays ended; its state is kept."""


def slug(text: str) -> str:
    """Return an agent's name made of `text`."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return name[:_LONGEST_NAME].strip("-") or "agent"


def with_names_apart(found: Iterable[Found]) -> list[Found]:
    """Return the same, with a number where two would have the same name."""
    taken: set[str] = set()
    apart = []
    for one in found:
        name, number = one.name, 2
        while name in taken:
            name = f"{one.name[: _LONGEST_NAME - 3]}-{number}"
            number += 1
        taken.add(name)
        apart.append(replace(one, name=name))
    return apart
