"""A small world in memory: targets, their volumes, what runs, and what must hold.

An agent that runs here writes a numbered message into its volume after every effect of
anybody. So whatever is copied, stopped or started at the wrong moment loses a message,
doubles one, or lets two epochs write at once, and `World.turn` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from lobstertrap.agent import AgentSpec
from lobstertrap.errors import LobsterTrapError, NotFound
from lobstertrap.lease import AgentRecord, record_key
from lobstertrap.stores.memory import MemoryStore

AGENT = AgentSpec.model_validate(
    {
        "name": "ada",
        "image": "ada:1",
        "volumes": [{"name": "state", "path": "/state"}],
        "health": {"command": ["true"], "start": 2, "interval": 1},
    }
)

Message = tuple[int, int]
"""The epoch that wrote it, and a number that is given once in the world."""


@dataclass(slots=True)
class Volume:
    """The agent's volume on one target."""

    messages: tuple[Message, ...] = ()
    torn: bool = False
    """A restore has begun to write here and has not finished."""


@dataclass(slots=True)
class Instance:
    """The agent's container or process on one target."""

    epoch: int
    running: bool = True


@dataclass(slots=True)
class Place:
    """One target: what is really there, whoever asks."""

    name: str
    fences: bool = True
    """Whether the target keeps a fence (`lobstertrap.targets.base.Fence`)."""
    volume: Volume | None = None
    instance: Instance | None = None
    mover: object = None
    """Who has a mover at work on the volume."""
    healthy: bool = True
    epoch_barred: int = 0
    turn_barred: int = 0

    @property
    def running(self) -> bool:
        """Whether the agent runs here."""
        return self.instance is not None and self.instance.running


@dataclass
class World:
    """Everything outside of the processes that act on it."""

    places: dict[str, Place]
    store: MemoryStore = field(default_factory=MemoryStore)
    snapshots: dict[str, tuple[Message, ...]] = field(default_factory=dict)
    written: int = 0
    kept: tuple[Message, ...] = ()
    """Every message that the agent acknowledged at its home: what may never be lost."""
    pending: tuple[Message, ...] = ()
    """What it acknowledged at a destination: only a rollback may lose it."""
    home: str | None = None
    epoch: int = 0
    given_up: bool = False
    """Somebody asked for the volumes to be removed: the repository has the copy."""
    on_the_way: list[Callable[[], object]] = field(default_factory=list)
    """Requests of which their senders do not know that they will still arrive."""
    clock: float = 1_000_000.0
    violations: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, *names: str, fences: bool = True) -> World:
        """Return a world with empty targets of these names."""
        return cls(places={n: Place(name=n, fences=fences) for n in names})

    def record(self) -> AgentRecord | None:
        """Return the agent's record as it is in the store."""
        try:
            return AgentRecord.from_json(self.store.get(record_key(AGENT.name)).data)
        except NotFound:
            return None

    def break_promise(self, what: str) -> None:
        """Remember that something happened that never may."""
        self.violations.append(what)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Remember `otherwise` unless it holds."""
        if not holds:
            self.break_promise(otherwise)

    def arrive(self) -> None:
        """Let one request arrive that its sender has given up."""
        with suppress(LobsterTrapError):
            self.on_the_way.pop(0)()
        self.turn()

    def turn(self) -> None:
        """Let what runs write a message, and look at every promise."""
        record = self.record()
        self._follow(record)
        running = [place for place in self.places.values() if place.running]
        if len(running) > 1:
            self.break_promise(f"two copies run: {[p.name for p in running]}")
        for place in running:
            self._write(place, record)
        here = any(self._is_complete(place) for place in self.places.values())
        # A restore in place goes through the repository, which has both states.
        on_disk_only = not (self.given_up or (record and record.restoring))
        saved = not on_disk_only and self._is_saved()
        self.expect(here or saved, "no complete copy of the state")

    def _follow(self, record: AgentRecord | None) -> None:
        if record is None:
            if self.epoch:
                self.break_promise("the record is gone")
            return
        if record.epoch < self.epoch:
            self.break_promise(f"the epoch went from {self.epoch} to {record.epoch}")
        self.epoch = record.epoch
        journal = record.migration
        if record.target != self.home:
            self.home = record.target
            here = self.places[record.target].volume if record.target else None
            if here and self._prefix(here):  # what it wrote before the commit counts
                self.kept = here.messages
                lost = {*self.pending} - {*here.messages}
                self.expect(not lost or bool(record.restoring), f"lost: {lost}")
        if journal is None or journal.step == "rolling-back":
            self.pending = ()
        if record.restoring:  # somebody asked for this older state
            self.kept = self.snapshots[record.restoring]

    def _write(self, place: Place, record: AgentRecord | None) -> None:
        volume, instance = place.volume, place.instance
        if volume is None or instance is None:
            self.break_promise(f"it runs on '{place.name}' without its volume")
            return
        if volume.torn:
            self.break_promise(f"it runs on '{place.name}' on a half-restored volume")
        if place.mover is not None and volume.torn:
            self.break_promise(f"a restore writes under the agent on '{place.name}'")
        if record is None or instance.epoch > record.epoch:
            self.break_promise(f"it runs on '{place.name}' under an epoch of nobody")
        if volume.messages and volume.messages[-1][0] > instance.epoch:
            self.break_promise(f"an older epoch writes on '{place.name}'")
        self.written += 1
        volume.messages += ((instance.epoch, self.written),)
        if self.home == place.name:
            self.kept = volume.messages
        else:
            self.pending += volume.messages[-1:]

    def _is_complete(self, place: Place) -> bool:
        volume = place.volume
        if volume is None:
            return not self.kept
        return not volume.torn and self._prefix(volume)

    def _is_saved(self) -> bool:
        length = len(self.kept)
        return any(saved[:length] == self.kept for saved in self.snapshots.values())

    def _prefix(self, volume: Volume) -> bool:
        return volume.messages[: len(self.kept)] == self.kept
