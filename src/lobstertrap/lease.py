"""Who may run an agent: its record in the store, and the lease of one operation on it.

The record is one JSON object per agent, changed only by compare-and-swap and never
deleted. Its *epoch* is the fencing token: it only grows, every launch raises it, and
every instance carries the one that it was launched with. Its *operation* is the lease:
one migration, snapshot or restore at a time, in the world.

No clock is compared with another machine's. A holder renews by changing `beat`; whoever
wants the lease watches the record for a whole `ttl` on its own clock, and takes it only
if nothing changed (the scheme of the DynamoDB lock client). A holder whose process is
seen to be dead (same kernel, same pid namespace, no such process) is not waited for.
docs/migration.md argues why this is enough.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from lobstertrap.errors import (
    Conflict,
    Held,
    InvalidInput,
    LeaseLost,
    LobsterTrapError,
    NotFound,
    Refused,
    Transient,
)
from lobstertrap.stores.base import ObjectStore

RECORD_VERSION = 1
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
_ENDED = -1
"""In place of its start: a process that has ended and is not yet reaped."""
_LOOKS = 60
"""How often a held record is looked at within a `ttl`, to see soon that it lives."""
TTL = 30.0
"""Seconds without a renewal after which a lease may be taken over."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that runs an operation."""

    host: str
    pid: int
    started: int
    """Clock ticks after boot, from /proc: a reused pid is another process."""
    kernel: str
    """Boot id and pid namespace: where `pid` means something."""

    @classmethod
    def this_process(cls) -> Holder:
        """Describe the process that calls."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=_started(os.getpid()) or 0,
            kernel=_kernel(),
        )

    def is_dead(self) -> bool:
        """Say whether the process is known to be gone; False when it cannot be seen."""
        if not self.kernel or self.kernel != _kernel():
            return False
        started = _started(self.pid)
        if started is None:  # no such process, or one of somebody else's (hidepid)
            return not _exists(self.pid)
        return started != self.started


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """The one operation that holds the agent."""

    id: str
    kind: str
    holder: Holder
    since: float
    """Seconds since the epoch by the holder's clock: for people, never compared."""
    beat: int = 0

    def __str__(self) -> str:
        when = time.strftime("%H:%MZ", time.gmtime(self.since))
        return f"{self.kind} by {self.holder.host} (pid {self.holder.pid}) since {when}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """How far an open migration is; docs/migration.md has the states."""

    id: str
    source: str
    destination: str
    step: Literal["staging", "cutover", "launching", "rolling-back"]
    was_running: bool
    started: float
    launched: bool = False
    """Whether the destination may ever have been started."""
    stopped_at: float | None = None
    """When the source was asked to stop, by the clock of who asked: for the receipt."""
    snapshot: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """Somebody else's deployment that still has the agent's state, and may run."""

    target: str
    original: str
    """Its name there: nothing of ours is launched before it is stopped for good."""
    sources: dict[str, str]
    """Where its state is, as the target names it, by the spec's volume."""
    step: Literal["kept", "switching", "retiring"] = "kept"
    """`kept`: it is left alone; `switching`: its place is being taken; `retiring`: ours
    is the agent, and what is left is to make sure that the original stays ended."""
    was_running: bool = False
    """Whether it ran when the switch began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A migration or a takeover that is over."""

    source: str
    destination: str
    outcome: Literal["moved", "rolled-back", "taken-over"]
    began: float
    ended: float
    """Both by the clocks of who did it: for people."""
    epoch: int
    """The agent's epoch after it."""


MOVES_KEPT = 100
"""The older ones are forgotten; snapshots tell where they were taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecord:
    """The truth about one agent, as the store has it."""

    agent: str
    epoch: int = 0
    turn: int = 0
    """Counts the operations that held the agent: the fencing token of a mover."""
    target: str | None = None
    """Where the agent lives; None until its first launch or restore."""
    state: Literal["running", "stopped"] = "stopped"
    """What it should be doing there."""
    operation: Operation | None = None
    migration: Journal | None = None
    snapshot: str | None = None
    """The last snapshot's id."""
    restoring: str | None = None
    """The snapshot that a restore has begun to write over the volumes; nothing is
    launched, and no snapshot taken, until that restore is finished."""
    leftovers: tuple[str, ...] = ()
    """Where it lived before: a stopped instance and secrets are left there."""
    adopted: Adopted | None = None
    """The original of an adopted agent, until the agent has taken its place."""
    moves: tuple[Move, ...] = ()
    """Its last moves, oldest first."""

    def after(self, move: Move) -> AgentRecord:
        """Return the record with one more move."""
        return replace(self, moves=(*self.moves, move)[-MOVES_KEPT:])

    def is_over(self, target: str, epoch: int | None) -> bool:
        """Say whether a copy on `target` under `epoch` is one that a takeover left.

        Any other one may be somebody else's agent of that name, by another store.
        """
        return epoch is not None and any(
            move.outcome == "taken-over"
            and move.source == target
            and epoch < move.epoch
            for move in self.moves
        )

    def to_json(self) -> bytes:
        """Return the stored form."""
        body = {"version": RECORD_VERSION, **asdict(self)}
        if not self.leftovers:  # so that older programs read what has none
            del body["leftovers"]
        if self.adopted is None:  # so that older programs read what is not adopted
            del body["adopted"]
        if not self.moves:  # so that older programs read what never moved
            del body["moves"]
        return json.dumps(body, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> AgentRecord:
        """Read the stored form; `InvalidInput` for a newer version or garbage."""
        try:
            raw = json.loads(data)
            version = raw.pop("version")
            if version != RECORD_VERSION:
                raise InvalidInput(
                    f"the agent record has version {version}, "
                    f"this program knows {RECORD_VERSION}",
                    hint="install a newer lobstertrap",
                )
            operation, migration = raw.pop("operation"), raw.pop("migration")
            leftovers = tuple(raw.pop("leftovers", ()))
            adopted = raw.pop("adopted", None)
            moves = tuple(Move(**move) for move in raw.pop("moves", ()))
            if operation:
                operation["holder"] = Holder(**operation["holder"])
            return cls(
                operation=Operation(**operation) if operation else None,
                migration=Journal(**migration) if migration else None,
                leftovers=leftovers,
                adopted=Adopted(**adopted) if adopted else None,
                moves=moves,
                **raw,
            )
        except _UNREADABLE as error:
            raise InvalidInput(
                f"the agent record cannot be read: {error}",
                hint="restore agents/<name>/record.json from the bucket's history",
            ) from error


def record_key(agent: str) -> str:
    """Return the key of the agent's record, below the store's prefix."""
    return f"agents/{agent}/record.json"


def read_record(store: ObjectStore, agent: str) -> AgentRecord | None:
    """Return the agent's record, or None when it was never launched."""
    try:
        return AgentRecord.from_json(store.get(record_key(agent)).data)
    except NotFound:
        return None


class Lease:
    """One operation's hold on an agent; every change of the record goes through it."""

    def __init__(self, store: ObjectStore, agent: str, operation_id: str) -> None:
        self.agent = agent
        self.operation_id = operation_id
        self._store = store
        self._lock = threading.Lock()

    def read(self) -> AgentRecord:
        """Return the record as it is in the store now; `LeaseLost` if not ours."""
        return self._read()[0]

    def check(self) -> None:
        """Raise `LeaseLost` unless the operation still holds the agent."""
        self._read()

    def update(self, change: Callable[[AgentRecord], AgentRecord]) -> AgentRecord:
        """Apply `change` to the record by compare-and-swap and return the result."""
        with self._lock:
            while True:
                record, etag = self._read()
                changed = change(record)
                if changed.epoch < record.epoch:
                    raise Refused(f"the epoch of agent '{self.agent}' only grows")
                try:
                    self._store.put(
                        record_key(self.agent), changed.to_json(), if_match=etag
                    )
                except Conflict:
                    continue
                return changed

    def renew(self) -> None:
        """Show that the holder lives."""

        def beat(record: AgentRecord) -> AgentRecord:
            assert record.operation is not None  # noqa: S101 - _read has checked it
            operation = replace(record.operation, beat=record.operation.beat + 1)
            return replace(record, operation=operation)

        self.update(beat)

    def release(self) -> None:
        """Give the agent free; a lease that is no longer ours is left alone.

        A store that does not answer does not turn what was done into a failure: the
        lease lapses by itself.
        """
        try:
            self.update(lambda record: replace(record, operation=None))
        except LeaseLost:
            log.warning("the lease on agent '%s' was already gone", self.agent)
        except Transient as error:
            log.warning(
                "the lease on agent '%s' is left to lapse: %s", self.agent, error
            )

    def _read(self) -> tuple[AgentRecord, str]:
        try:
            found = self._store.get(record_key(self.agent))
        except NotFound as error:
            raise LeaseLost(f"the record of agent '{self.agent}' is gone") from error
        record = AgentRecord.from_json(found.data)
        if record.operation is None or record.operation.id != self.operation_id:
            now = f"; now: {record.operation}" if record.operation else ""
            raise LeaseLost(
                f"this operation no longer holds agent '{self.agent}'{now}",
                hint="look at `lobstertrap status`, then run the command again",
            )
        return record, found.etag


class Onlooker(Lease):
    """Reads the record whoever holds the agent, and changes nothing: for plans."""

    def __init__(self, store: ObjectStore, agent: str) -> None:
        super().__init__(store, agent, "nobody")

    def read(self) -> AgentRecord:
        """Return the record as it is in the store now; an empty one if none is."""
        return read_record(self._store, self.agent) or AgentRecord(agent=self.agent)


@contextmanager
def hold(
    store: ObjectStore,
    agent: str,
    kind: str,
    *,
    ttl: float = TTL,
    holder: Holder | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Lease]:
    """Hold the agent for one operation: acquire, renew in the background, release.

    Raises `Held` when another operation holds it and is alive. A lease left by a
    dead process is taken over: at once when it can be seen to be dead, after `ttl`
    seconds of silence otherwise.
    """
    lease = acquire(store, agent, kind, ttl=ttl, holder=holder, sleep=sleep)
    stop = threading.Event()
    beats = threading.Thread(
        target=_keep_renewing, args=(lease, ttl / 3, stop), daemon=True
    )
    beats.start()
    try:
        yield lease
    finally:
        stop.set()
        beats.join()
        lease.release()


def acquire(
    store: ObjectStore,
    agent: str,
    kind: str,
    *,
    ttl: float = TTL,
    holder: Holder | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Lease:
    """Take the lease, as `hold` does, without renewing it."""
    operation = Operation(
        id=uuid.uuid4().hex,
        kind=kind,
        holder=holder or Holder.this_process(),
        since=time.time(),
    )
    while True:
        record, etag = _read_or_new(store, agent)
        if record.operation is not None:
            if record.operation.id == operation.id:  # a write whose answer was lost
                return Lease(store, agent, operation.id)
            _wait_until_abandoned(store, record, etag, ttl, sleep)
        taken = replace(record, operation=operation, turn=record.turn + 1).to_json()
        try:
            if etag is None:
                store.put(record_key(agent), taken, if_absent=True)
            else:
                store.put(record_key(agent), taken, if_match=etag)
        except Conflict:
            continue  # somebody was faster: look again at what is there now
        return Lease(store, agent, operation.id)


def _read_or_new(store: ObjectStore, agent: str) -> tuple[AgentRecord, str | None]:
    try:
        found = store.get(record_key(agent))
    except NotFound:
        return AgentRecord(agent=agent), None
    return AgentRecord.from_json(found.data), found.etag


def _wait_until_abandoned(
    store: ObjectStore,
    record: AgentRecord,
    etag: str | None,
    ttl: float,
    sleep: Callable[[float], None],
) -> None:
    operation = record.operation
    if operation is None or operation.holder.is_dead():
        return
    log.info("agent '%s' is held: %s; watching for a sign", record.agent, operation)
    for _ in range(_LOOKS):
        sleep(ttl / _LOOKS)
        if store.head(record_key(record.agent)).etag != etag:
            break
    else:
        return
    now = _read_or_new(store, record.agent)[0].operation
    if now is not None:
        raise Held(
            f"agent '{record.agent}' is held: {now}",
            hint="wait for it to end (`lobstertrap status` shows it), then try again",
        )


def _keep_renewing(lease: Lease, interval: float, stop: threading.Event) -> None:
    while not stop.wait(interval):
        try:
            lease.renew()
        except LeaseLost as error:
            log.error("%s", error)  # noqa: TRY400 - the next step raises it itself
            return
        except LobsterTrapError as error:  # tried again: it is not yet lost
            log.warning("could not renew the lease: %s", error)


def _kernel() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""  # not Linux: nobody is ever taken for dead


def _started(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return _ENDED if fields[0] in "ZX" else int(fields[19])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
