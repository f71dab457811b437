"""The contract of a target: a place where an agent runs.

Guarantees, checked by tests/contract/test_targets.py on every implementation:

- every method may be repeated safely and looks at the world first;
- everything of ours is found again by what is on the target itself (labels, files):
  no state is kept elsewhere;
- at most one instance of an agent exists on a target, and it carries its epoch;
- `stop` returns only when the agent is *proven* stopped and cannot start again by
  itself (crash restart, reboot); otherwise it raises;
- a volume is removed only by `remove(volumes=True)`;
- errors are ours: `Unavailable` when the target does not answer, `NotFound`,
  `AccessDenied`, `NoSpace`, `Refused`, each naming target and agent.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from lobstertrap.agent import AgentSpec
from lobstertrap.job import MoverJob, OnProgress
from lobstertrap.redaction import SecretValue

Secrets = Mapping[str, SecretValue]
"""Values by environment name; refs of source `target` are not in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetInfo:
    """What `inspect` found: it answered, and this is what it is."""

    name: str
    kind: str
    identity: str
    """Equal for two targets that are the same place (same engine and storage)."""
    platform: str
    """As in OCI: `linux/amd64`."""
    version: str
    free_bytes: int | None
    """Space for volumes; None when the target cannot tell."""
    commands: bool = True
    """Whether we may run commands beside an agent here, where a target can."""
    notes: tuple[str, ...] = ()
    """What a person should know: `rootless: no resource limits on cgroup v1`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStatus:
    """What a target really shows of one agent now."""

    phase: Literal["absent", "stopped", "running"]
    epoch: int | None = None
    """The epoch that the instance was launched with; None when absent."""
    healthy: bool | None = None
    """One probe's answer when running; None when there is no probe or not running."""
    detail: str = ""
    """Why it is stopped or not healthy, in a few words."""
    started_at: float | None = None
    """Seconds since the epoch."""
    image: str | None = None
    addresses: Mapping[str, str] = field(default_factory=dict)
    """`host:port` by port name, as reachable from the target's own machine."""
    volumes: tuple[str, ...] = ()
    """Names of the agent's volumes that exist here, with or without an instance."""


class Target(Protocol):
    """A place where an agent runs; the module says what is promised."""

    @property
    def name(self) -> str:
        """The name in lobstertrap.toml."""

    def inspect(self) -> TargetInfo:
        """Ask the target what it is; `Unavailable` when it does not answer."""

    def ensure_image(self, agent: AgentSpec) -> str:
        """Make the agent's image present (built, pulled or already here).

        Returns its identity: the content digest by which it is run. Nothing is rebuilt
        when nothing changed.
        """

    def bind_secrets(self, agent: AgentSpec, secrets: Secrets) -> None:
        """Hand the values to the target's own mechanism, replacing older ones.

        Raises `SecretMissing` when a ref of source `target` is not there. A target
        without such a mechanism (host) only checks, and takes the values at `launch`.
        """

    def launch(
        self, agent: AgentSpec, *, epoch: int, image: str, secrets: Secrets
    ) -> None:
        """Run the agent under `epoch`; returns when started, not when healthy.

        Makes missing volumes. Already running with this epoch: nothing to do. Running
        with another epoch: `Refused`. A stopped instance is replaced; its volumes stay.
        """

    def stop(self, agent: AgentSpec) -> None:
        """Stop with the spec's grace, then by force; absent is no error."""

    def status(self, agent: AgentSpec) -> AgentStatus:
        """Say what is here now; probes the agent's health once when it runs."""

    def run_mover(
        self, agent: AgentSpec, job: MoverJob, on_progress: OnProgress
    ) -> dict[str, Any]:
        """Run `job` beside the agent's volumes and return its result.

        For a restore missing volumes are made, owned so that the agent can write them;
        for a snapshot a missing volume is `NotFound`. A cancelled call (any exception,
        Ctrl-C) leaves no mover running.
        """

    def remove(self, agent: AgentSpec, *, volumes: bool = False) -> None:
        """Remove a stopped instance and its secrets; volumes only when asked.

        Raises `Refused` while the agent runs.
        """


@runtime_checkable
class Keeper(Protocol):
    """Optional: a target that keeps a mover ready from one request to the next.

    It holds no volume and no lock between two requests, and ends with this process.
    """

    def close(self) -> None:
        """End what is kept; the next request only takes a little longer."""


@runtime_checkable
class LogSource(Protocol):
    """Optional: a target that keeps what the agent printed."""

    def logs(
        self, agent: AgentSpec, *, follow: bool = False, lines: int | None = None
    ) -> Iterator[str]:
        """Yield lines, oldest first; the last `lines` when given."""


@runtime_checkable
class Forwarder(Protocol):
    """Optional: a target whose agents are reached from here only through it."""

    def dial(self, agent: AgentSpec, port: int) -> socket.socket:
        """Connect to a port of the agent where it runs.

        Raises `NotFound` when it does not run, `AccessDenied` without the right to it.
        """


@runtime_checkable
class Fence(Protocol):
    """Optional: a target that refuses what comes too late.

    A process that is suspended between asking the record and acting on the target may
    wake up after another operation has moved on. Without a fence it starts a second
    copy, or writes old state over newer.
    """

    def fence(self, agent: AgentSpec, *, epoch: int, turn: int) -> tuple[int, int]:
        """Refuse launches up to `epoch`, and movers of a lower `turn`, from now on.

        Both numbers are kept on the target, also after `remove`, and never lowered;
        returns what they are now: higher ones when the record that the caller has is
        older than what acted here last. A
        launch that goes on at the same moment is refused, or is over and seen by the
        next `status`; what runs already goes on running. `launch` raises `Refused` for
        an epoch that is fenced off, and so does `run_mover` for a request that has a
        lower `turn` (one without has none, and is let through).
        """


@runtime_checkable
class ImageTransfer(Protocol):
    """Optional: images go from target to target where no registry is in reach."""

    def export_image(self, image: str) -> Iterator[bytes]:
        """Stream the image (OCI or docker archive) whose identity is `image`."""

    def import_image(self, agent: AgentSpec, archive: Iterator[bytes]) -> str:
        """Load an exported image and return its identity, the same as the source's."""

    def has_image(self, agent: AgentSpec, image: str) -> bool:
        """Say whether the image with this identity is here, by whatever name.

        If it is, `ensure_image` finds it for the agent from then on.
        """


@runtime_checkable
class SecretKeeper(Protocol):
    """Optional: a target that says which of an agent's secrets it has."""

    def held_secrets(self, agent: AgentSpec) -> Mapping[str, str]:
        """Return the marks of the secrets that are there, by name.

        The mark is that of the value with which the instance was launched; "" when
        there is none, or it was launched without marks. Values never leave the target.
        """


@runtime_checkable
class Freezer(Protocol):
    """Optional: a target that can suspend an agent for the moment of a snapshot."""

    def freeze(self, agent: AgentSpec) -> None:
        """Suspend every process of the agent; returns when none of them runs.

        Whatever becomes of who asked, it goes on after `agent.snapshot.timeout` seconds
        at the latest. Raises `Refused` when that cannot be promised here, `NotFound`
        when nothing runs.
        """

    def thaw(self, agent: AgentSpec) -> bool:
        """Let it go on; says whether it was suspended until now. Absent is no error."""


@runtime_checkable
class CommandRunner(Protocol):
    """Optional: a target that runs a command where the agent runs."""

    def run_command(
        self, agent: AgentSpec, command: Sequence[str], *, seconds: float
    ) -> tuple[int, str]:
        """Run it beside the agent, as its user; return exit status and output.

        Raises `NotFound` when the agent does not run, `TimedOut` when the command did
        not end in time.
        """
