"""A target without processes, for tests: real volumes, scripted health and failures.

It passes the same contract suite as the real ones. The `World` is what the real world
is to real targets: what runs where, shared by all fakes, however often they are opened.
It notices the one thing that must never happen, two running copies of one agent.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lobstertrap.agent import AgentSpec
from lobstertrap.errors import NotFound, Refused, SecretMissing, Unavailable
from lobstertrap.job import MoverJob, OnProgress
from lobstertrap.targets.base import AgentStatus, Secrets, TargetInfo
from lobstertrap.targets.mover_child import run_mover_child

Mover = Callable[[str, OnProgress], dict[str, Any]]
"""Runs a request, as `run_mover_child` does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An instance started or stopped."""

    at: float
    """Seconds, by the world's clock."""
    what: Literal["started", "stopped"]
    agent: str
    target: str
    epoch: int


@dataclass(slots=True, kw_only=True)
class FakeInstance:
    """What a fake target has of one agent."""

    epoch: int
    image: str
    running: bool
    started_at: float
    detail: str = ""


@dataclass(slots=True, kw_only=True)
class FakePlace:
    """What is at one place, whoever looks at it."""

    instances: dict[str, FakeInstance] = field(default_factory=dict)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    """Marks of bound secrets by agent; values are not kept."""
    epochs: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    turns: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """The fences by agent."""
    frozen: set[str] = field(default_factory=set)
    """Agents that are suspended."""
    commands: list[list[str]] = field(default_factory=list)
    """What was run beside agents, oldest first."""
    unhealthy: dict[str, str] = field(default_factory=dict)
    failures: dict[str, list[Exception]] = field(
        default_factory=lambda: defaultdict(list)
    )


@dataclass(slots=True, kw_only=True)
class World:
    """All places, and the history of everything that ran."""

    clock: Callable[[], float] = time.time
    history: list[Event] = field(default_factory=list)
    places: dict[Path, FakePlace] = field(
        default_factory=lambda: defaultdict(FakePlace)
    )
    lock: threading.RLock = field(default_factory=threading.RLock)

    def running(self, agent: str) -> list[int]:
        """Return the epochs under which the agent runs, anywhere."""
        return [
            place.instances[agent].epoch
            for place in self.places.values()
            if agent in place.instances and place.instances[agent].running
        ]

    def record(
        self, what: Literal["started", "stopped"], agent: str, target: str, epoch: int
    ) -> None:
        """Add to the history; raises AssertionError when two copies run at once."""
        self.history.append(
            Event(at=self.clock(), what=what, agent=agent, target=target, epoch=epoch)
        )
        if len(self.running(agent)) > 1:
            raise AssertionError(f"two copies of '{agent}' run: {self.history}")


class FakeTarget:
    """Runs nothing, and behaves as if; the module says what is promised."""

    kind = "fake"

    def __init__(
        self,
        name: str,
        root: Path,
        *,
        world: World | None = None,
        mover: Mover = run_mover_child,
    ) -> None:
        self._name = name
        self._root = root.absolute()
        self._mover = mover
        self.world = world or World()
        self.place = self.world.places[self._root]

    @property
    def name(self) -> str:
        """The name in lobstertrap.toml."""
        return self._name

    def fail_on(self, method: str, error: Exception, *, times: int = 1) -> None:
        """Raise `error` in the next `times` calls of `method`, before any effect.

        With a method of `after:launch` and so on, it is raised after the effect: the
        answer got lost.
        """
        self.place.failures[method] += [error] * times

    def set_unhealthy(self, agent: AgentSpec, why: str | None) -> None:
        """Let probes answer that the agent is not ready; None makes it ready again."""
        if why is None:
            self.place.unhealthy.pop(agent.name, None)
        else:
            self.place.unhealthy[agent.name] = why

    def crash(self, agent: AgentSpec, detail: str = "ended with status 1") -> None:
        """End the instance as if by itself."""
        with self.world.lock:
            self._end(agent, detail)

    def volume(self, agent: AgentSpec, name: str) -> Path:
        """Return the directory of a volume, for a test to write into."""
        return self._root / agent.name / "volumes" / name

    def inspect(self) -> TargetInfo:
        """Answer like a real one."""
        self._maybe_fail("inspect")
        self._root.mkdir(parents=True, exist_ok=True)
        return TargetInfo(
            name=self._name,
            kind=self.kind,
            identity=f"fake:{self._root}",
            platform="linux/amd64",
            version="fake",
            free_bytes=shutil.disk_usage(self._root).free,
        )

    def ensure_image(self, agent: AgentSpec) -> str:
        """Return a digest of what the spec says of the image."""
        self._maybe_fail("ensure_image")
        text = repr((agent.image, agent.build, agent.command))
        self._maybe_fail("after:ensure_image")
        return f"fake:{hashlib.sha256(text.encode()).hexdigest()}"

    def bind_secrets(self, agent: AgentSpec, secrets: Secrets) -> None:
        """Remember the names."""
        self._maybe_fail("bind_secrets")
        self._require(agent, secrets)
        self.place.secrets[agent.name] = {
            name: value.mark for name, value in secrets.items()
        }
        self._maybe_fail("after:bind_secrets")

    def _require(self, agent: AgentSpec, secrets: Secrets) -> None:
        missing = sorted(agent.secrets.keys() - secrets.keys())
        if missing:
            names = ", ".join(missing)
            raise SecretMissing(f"{self._about(agent)} no value for {names}")

    def launch(
        self, agent: AgentSpec, *, epoch: int, image: str, secrets: Secrets
    ) -> None:
        """Record an instance as running; see base.py."""
        self._maybe_fail("launch")
        with self.world.lock:
            found = self.place.instances.get(agent.name)
            if found and found.running:
                if found.epoch != epoch:
                    raise Refused(f"{self._about(agent)} runs under {found.epoch}")
                return
            if epoch <= self.place.epochs[agent.name]:
                raise Refused(f"{self._about(agent)} epoch {epoch} is fenced off")
            self._require(agent, secrets)
            for volume in agent.volumes:
                self.volume(agent, volume.name).mkdir(parents=True, exist_ok=True)
            self.place.instances[agent.name] = FakeInstance(
                epoch=epoch, image=image, running=True, started_at=self.world.clock()
            )
            self.world.record("started", agent.name, self._name, epoch)
        self._maybe_fail("after:launch")

    def stop(self, agent: AgentSpec) -> None:
        """Record it as stopped."""
        self._maybe_fail("stop")
        with self.world.lock:
            self._end(agent, "ended with status 0")
        self._maybe_fail("after:stop")

    def _end(self, agent: AgentSpec, detail: str) -> None:
        found = self.place.instances.get(agent.name)
        if found and found.running:
            found.running, found.detail = False, detail
            self.world.record("stopped", agent.name, self._name, found.epoch)

    def status(self, agent: AgentSpec) -> AgentStatus:
        """Say what is recorded, and as healthy as the test wants."""
        self._maybe_fail("status")
        volumes = tuple(
            v.name for v in agent.volumes if self.volume(agent, v.name).is_dir()
        )
        found = self.place.instances.get(agent.name)
        if found is None:
            return AgentStatus(phase="absent", volumes=volumes)
        why_not = self.place.unhealthy.get(agent.name)
        probed = found.running and agent.health is not None
        return AgentStatus(
            phase="running" if found.running else "stopped",
            epoch=found.epoch,
            healthy=why_not is None if probed else None,
            detail=(why_not or "") if found.running else found.detail,
            started_at=found.started_at,
            image=found.image,
            addresses={p.name: f"127.0.0.1:{p.port}" for p in agent.ports}
            if found.running
            else {},
            volumes=volumes,
        )

    def run_mover(
        self, agent: AgentSpec, job: MoverJob, on_progress: OnProgress
    ) -> dict[str, Any]:
        """Run the real mover on the real volumes; see base.py."""
        self._maybe_fail("run_mover")
        self._maybe_fail(f"run_mover:{job.command}")
        paths = {name: self.volume(agent, name) for name in job.volumes}
        self._admit_mover(agent, job)
        for name, path in paths.items():
            if job.command == "restore":
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            elif not path.is_dir():
                raise NotFound(f"{self._about(agent)} there is no volume '{name}'")
        request = job.to_json(
            {name: str(path) for name, path in paths.items()},
            owner=(os.getuid(), os.getgid()),
        )
        result = self._mover(request, on_progress)
        self._maybe_fail(f"after:run_mover:{job.command}")
        return result

    def _admit_mover(self, agent: AgentSpec, job: MoverJob) -> None:
        turn = job.request.get("turn")
        if turn is not None and turn < self.place.turns[agent.name]:
            raise Refused(f"{self._about(agent)} a mover of turn {turn} is too late")
        found = self.place.instances.get(agent.name)
        if job.command == "restore" and found and found.running:
            raise Refused(f"{self._about(agent)} runs, so its volumes are not written")

    def remove(self, agent: AgentSpec, *, volumes: bool = False) -> None:
        """Forget a stopped instance; see base.py."""
        self._maybe_fail("remove")
        with self.world.lock:
            found = self.place.instances.get(agent.name)
            if found and found.running:
                raise Refused(f"{self._about(agent)} it runs", hint="stop it first")
            self.place.instances.pop(agent.name, None)
            self.place.secrets.pop(agent.name, None)
            if volumes:
                shutil.rmtree(self._root / agent.name, ignore_errors=True)
        self._maybe_fail("after:remove")

    def fence(self, agent: AgentSpec, *, epoch: int, turn: int) -> tuple[int, int]:
        """Refuse what comes too late; see base.py."""
        self._maybe_fail("fence")
        with self.world.lock:
            epochs, turns = self.place.epochs, self.place.turns
            epochs[agent.name] = max(epochs[agent.name], epoch)
            turns[agent.name] = max(turns[agent.name], turn)
            return epochs[agent.name], turns[agent.name]

    def held_secrets(self, agent: AgentSpec) -> Mapping[str, str]:
        """Name the bound secrets."""
        self._maybe_fail("held_secrets")
        return dict(self.place.secrets.get(agent.name, {}))

    def freeze(self, agent: AgentSpec) -> None:
        """Remember it as suspended."""
        self._maybe_fail("freeze")
        self._require_running(agent)
        self.place.frozen.add(agent.name)
        self._maybe_fail("after:freeze")

    def thaw(self, agent: AgentSpec) -> bool:
        """Let it go on."""
        self._maybe_fail("thaw")
        frozen = agent.name in self.place.frozen
        self.place.frozen.discard(agent.name)
        return frozen

    def run_command(
        self, agent: AgentSpec, command: Sequence[str], *, seconds: float
    ) -> tuple[int, str]:
        """Remember the command; `false` fails, as everywhere."""
        del seconds
        self._maybe_fail("run_command")
        self._require_running(agent)
        self.place.commands.append([*command])
        return int(command[0] == "false"), ""

    def _require_running(self, agent: AgentSpec) -> None:
        found = self.place.instances.get(agent.name)
        if found is None or not found.running:
            raise NotFound(f"{self._about(agent)} it does not run")

    def logs(
        self, agent: AgentSpec, *, follow: bool = False, lines: int | None = None
    ) -> Iterator[str]:
        """Yield the history of the agent here."""
        if follow:
            raise Unavailable(f"{self._about(agent)} a fake has no log to follow")
        words = [
            f"{event.what} under epoch {event.epoch}"
            for event in self.world.history
            if (event.agent, event.target) == (agent.name, self._name)
        ]
        yield from words if lines is None else words[max(0, len(words) - lines) :]

    def _maybe_fail(self, method: str) -> None:
        waiting = self.place.failures[method]
        if waiting:
            raise waiting.pop(0)

    def _about(self, agent: AgentSpec) -> str:
        return f"target '{self._name}': agent '{agent.name}':"
