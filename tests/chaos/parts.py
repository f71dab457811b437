"""A process in the small world, and the store and targets as that process sees them.

Every call that a process makes on the outside is one *effect*, counted from 0. A fault
may strike any of them: before it, after it, or in the middle of a restore.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from lobstertrap.agent import AgentSpec
from lobstertrap.errors import LobsterTrapError, NotFound, Refused, Unavailable
from lobstertrap.job import MoverJob, OnProgress
from lobstertrap.lease import Holder, Lease, acquire
from lobstertrap.lifecycle import AgentHandle
from lobstertrap.stores.base import ObjectInfo, StoredObject
from lobstertrap.targets.base import AgentStatus, Secrets, TargetInfo
from tests.chaos.world import AGENT, Instance, Place, Volume, World

T = TypeVar("T")

WEIGHT = 1 << 18
"""Bytes of one message: so heavy that the running source is copied more than once."""


class Killed(BaseException):
    """The process is dead: nothing that it does reaches the world any more."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What strikes an effect, and when."""

    when: Literal["before", "during", "after", "twice", "late"]
    """`twice`: the network repeats the request, and the second answer counts; `late`:
    it gives up on it, and the request arrives when `World.arrive` says so."""
    error: type[BaseException]

    def strike(self, process: Process) -> None:
        """Raise the error; a kill is for good."""
        if self.error is Killed:
            process.die()
        if issubclass(self.error, LobsterTrapError):
            raise self.error("a fault of the test")
        raise self.error


@dataclass
class Process:
    """One process that runs commands on the agent, on a machine of its own."""

    world: World
    faults: dict[int, Fault] = field(default_factory=dict)
    gate: Callable[[str], None] = lambda label: None
    """Called before each effect: where a scheduler lets others go first."""
    neighbours: list[Process] = field(default_factory=list)
    name: str = "alone"
    effects: list[str] = field(default_factory=list)
    dead: bool = False
    suspended: bool = False
    lease: Lease | None = None

    def effect(
        self,
        label: str,
        act: Callable[[], T],
        *,
        begin: Callable[[], None] | None = None,
    ) -> T:
        """Do `act` on the world; `begin` is what a restore does before it is whole."""
        fault = self._next(label)
        if fault and fault.when == "late" and begin is None:
            self.world.on_the_way.append(act)
        if fault and fault.when in ("before", "late"):
            fault.strike(self)
        if begin:
            begin()
            self.world.turn()
            self.gate(label + " goes on")
            if self.dead:
                raise Killed
            if fault and fault.when == "during":
                self._end_mover()
                fault.strike(self)
        result = act()
        self.world.turn()
        if fault and fault.when == "twice" and begin is None:
            result = act()
            self.world.turn()
        elif fault:
            fault.strike(self)
        return result

    def _next(self, label: str) -> Fault | None:
        self.gate(label)
        if self.dead:
            raise Killed
        self.effects.append(label)
        return self.faults.get(len(self.effects) - 1)

    def die(self) -> None:
        """End as by SIGKILL; its mover ends with it."""
        self.dead = True
        self._end_mover()

    def _end_mover(self) -> None:
        for place in self.world.places.values():
            if place.mover is self:
                place.mover = None

    def sleep(self, seconds: float) -> None:
        """Let time pass: whoever holds a lease and is not suspended renews it."""
        self.world.clock += seconds
        for other in self.neighbours:
            if other is not self and not other.dead and not other.suspended:
                other.beat()

    def beat(self) -> None:
        """Renew, as the thread of a living holder does."""
        if self.lease is not None:
            self.lease.renew()

    def acquire(self, kind: str) -> Lease:
        """Take the agent's lease; `Refused` when a living process has it."""
        holder = Holder(host=self.name, pid=1, started=1, kernel="")
        store = Store(self)
        taken = acquire(
            store, AGENT.name, kind, ttl=10, holder=holder, sleep=self.sleep
        )
        self.lease = Lease(self.world.store, AGENT.name, taken.operation_id)
        return taken

    def handle(self, operation: str) -> AgentHandle:
        """Return what the domain's functions act through."""
        return AgentHandle(
            spec=AGENT,
            lease=Lease(Store(self), AGENT.name, operation),
            target=lambda name: see(self, name),
            secrets=dict,
            mover_request=dict,
            now=lambda: self.world.clock,
            monotonic=lambda: self.world.clock,
            sleep=self.sleep,
        )


@dataclass(frozen=True, slots=True)
class Store:
    """The world's store, as one process reaches it."""

    process: Process

    @property
    def url(self) -> str:
        """Where this is."""
        return "memory:"

    def put(
        self,
        key: str,
        data: bytes | Sequence[bytes],
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Store; an effect."""
        there = self.process.world.store
        return self.process.effect(
            "put", lambda: there.put(key, data, if_absent=if_absent, if_match=if_match)
        )

    def get(self, key: str) -> StoredObject:
        """Read; an effect, because it may fail."""
        return self.process.effect("get", lambda: self.process.world.store.get(key))

    def head(self, key: str) -> ObjectInfo:
        """Look; an effect, because it may fail."""
        return self.process.effect("head", lambda: self.process.world.store.head(key))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Not used by the protocol."""
        raise NotImplementedError

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Not used by the protocol."""
        raise NotImplementedError

    def delete(self, key: str) -> None:
        """Never: a record is not deleted."""
        self.process.world.break_promise(f"{key} was deleted")


@dataclass(frozen=True, slots=True)
class OpenTarget:
    """A target without a fence, as one process reaches it."""

    process: Process
    place: Place

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self.place.name

    def _do(
        self, what: str, act: Callable[[], T], begin: Callable[[], None] | None = None
    ) -> T:
        return self.process.effect(f"{self.name}.{what}", act, begin=begin)

    def inspect(self) -> TargetInfo:
        """Say what it is."""
        info = TargetInfo(
            name=self.name,
            kind="world",
            identity=self.name,
            platform="linux/amd64",
            version="1",
            free_bytes=None,
        )
        return self._do("inspect", lambda: info)

    def ensure_image(self, agent: AgentSpec) -> str:
        """Have the image."""
        return self._do("ensure_image", lambda: "ada:1")

    def bind_secrets(self, agent: AgentSpec, secrets: Secrets) -> None:
        """Take no secrets."""
        self._do("bind_secrets", lambda: None)

    def launch(
        self, agent: AgentSpec, *, epoch: int, image: str, secrets: Secrets
    ) -> None:
        """Run the agent, as the contract has it."""
        self._do("launch", lambda: self._launch(epoch))

    def _launch(self, epoch: int) -> None:
        place, running = self.place, self.place.instance
        if running and running.running and running.epoch == epoch:
            return
        if place.running or epoch <= place.epoch_barred:
            raise Refused(f"epoch {epoch} comes too late on '{self.name}'")
        if place.mover is not None:
            raise Refused(f"a mover is at work on '{self.name}'")
        place.volume = place.volume or Volume()
        place.instance = Instance(epoch=epoch)

    def stop(self, agent: AgentSpec) -> None:
        """Stop the agent."""
        self._do("stop", self._stop)

    def _stop(self) -> None:
        if self.place.instance:
            self.place.instance.running = False

    def status(self, agent: AgentSpec) -> AgentStatus:
        """Say what is here."""
        return self._do("status", self._status)

    def _status(self) -> AgentStatus:
        place = self.place
        volumes = ("state",) if place.volume else ()
        if place.instance is None:
            return AgentStatus(phase="absent", volumes=volumes)
        return AgentStatus(
            phase="running" if place.running else "stopped",
            epoch=place.instance.epoch,
            healthy=place.healthy if place.running else None,
            image="ada:1",
            volumes=volumes,
        )

    def run_mover(
        self, agent: AgentSpec, job: MoverJob, on_progress: OnProgress
    ) -> dict[str, Any]:
        """Snapshot or restore the volume."""
        if job.command == "snapshot":
            return self._do("snapshot", lambda: self._snapshot(job))
        return self._do(
            "restore", lambda: self._restore(job), lambda: self._begin_restore(job)
        )

    def _snapshot(self, job: MoverJob) -> dict[str, Any]:
        place, world = self.place, self.process.world
        self._admit(job)
        if place.volume is None:
            raise NotFound(f"no volume 'state' on '{self.name}'")
        if place.mover is not None:
            raise Unavailable(f"a mover is at work on '{self.name}'")
        if place.volume.torn:
            world.break_promise(f"a half-restored volume on '{self.name}' is saved")
        if job.request["consistency"] == "stopped" and place.running:
            world.break_promise(f"it runs on '{self.name}' during the last snapshot")
        snapshot = uuid.uuid4().hex
        saved = max((len(old) for old in world.snapshots.values()), default=0)
        new = max(len(place.volume.messages) - saved, 0) * WEIGHT
        world.snapshots[snapshot] = place.volume.messages
        return _result(snapshot, place.volume, new_bytes=new, uploaded_bytes=new)

    def _admit(self, job: MoverJob) -> None:
        if job.request["turn"] < self.place.turn_barred:
            raise Refused(f"this mover comes too late on '{self.name}'")

    def _begin_restore(self, job: MoverJob) -> None:
        place = self.place
        self._admit(job)
        if place.running:
            raise Refused(f"the agent runs on '{self.name}'")
        if place.mover is not None:
            raise Unavailable(f"a mover is at work on '{self.name}'")
        place.mover = self.process
        place.volume = place.volume or Volume()
        place.volume.torn = True

    def _restore(self, job: MoverJob) -> dict[str, Any]:
        place, snapshot = self.place, job.request["snapshot"]
        place.mover = None
        place.volume = Volume(messages=self.process.world.snapshots[snapshot])
        return _result(snapshot, place.volume, bytes_written=1, verified=True)

    def remove(self, agent: AgentSpec, *, volumes: bool = False) -> None:
        """Remove a stopped instance."""
        self._do("remove", lambda: self._remove(volumes))

    def _remove(self, volumes: bool) -> None:
        if self.place.running:
            raise Refused(f"the agent runs on '{self.name}'")
        self.place.instance = None
        if volumes:
            self.place.volume = None


@dataclass(frozen=True, slots=True)
class FencedTarget(OpenTarget):
    """A target with a fence, as one process reaches it."""

    def fence(self, agent: AgentSpec, *, epoch: int, turn: int) -> tuple[int, int]:
        """Bar what comes later and is older."""
        return self._do("fence", lambda: self._fence(epoch, turn))

    def _fence(self, epoch: int, turn: int) -> tuple[int, int]:
        self.place.epoch_barred = max(epoch, self.place.epoch_barred)
        self.place.turn_barred = max(turn, self.place.turn_barred)
        return self.place.epoch_barred, self.place.turn_barred


def see(process: Process, name: str) -> OpenTarget:
    """Return the target `name` as `process` reaches it."""
    place = process.world.places[name]
    return (FencedTarget if place.fences else OpenTarget)(process, place)


def _result(snapshot: str, volume: Volume, **more: Any) -> dict[str, Any]:
    return {
        "snapshot": snapshot,
        "tree_digest": str(hash(volume.messages)),
        "status": "complete",
        "warnings": [],
        "files": 1,
        "bytes": len(volume.messages),
        "seconds": 0.0,
        **more,
    }
