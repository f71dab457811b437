"""A snapshot: what its manifest object says, apart from the tree itself."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, cast

import msgpack
import zstandard

from lobstertrap.errors import IntegrityError
from lobstertrap.repository.format import (
    ID_SIZE,
    MAX_SNAPSHOT,
    SNAPSHOT_PREFIX,
    VERSION,
    newer,
)
from lobstertrap.repository.pack import expand

Status = Literal["complete", "complete_with_warnings"]
Consistency = Literal["stopped", "live"]
Raw = bytes
"""The type, in a class that has a field of that name."""

PRE_COPY = "pre-copy"
"""The purpose of a snapshot that only makes a migration short."""

ROLLED_BACK = "rolled-back"
"""The purpose of a snapshot of what an abandoned destination wrote."""

_NAME = re.compile(r"(\d{14})\.([0-9a-f]{8})\.([0-9a-f]{32})")
_LENGTH = struct.Struct("<I")
_LAST_SECOND = 253402300800
"""Where calendars end: the year 10000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owners:
    """The agent's (uid, gid) on this machine, and in the spec: `local`, `canonical`.

    Swapping is its own inverse, so one method serves snapshot and restore.
    """

    local: tuple[int, int]
    canonical: tuple[int, int]

    def swap(self, uid: int, gid: int) -> tuple[int, int]:
        """Return the owner on the other side."""
        (here, group), (there, group_there) = self.local, self.canonical
        return (
            there if uid == here else here if uid == there else uid,
            group_there if gid == group else group if gid == group_there else gid,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotName:
    """What the object's name says, so that few manifests have to be read."""

    milliseconds: int
    tag: str
    id: str

    @property
    def key(self) -> str:
        """The object's key."""
        return f"{SNAPSHOT_PREFIX}{self.milliseconds:014d}.{self.tag}.{self.id}"

    @classmethod
    def parse(cls, key: str) -> Self | None:
        """Return the name in a key; None for something else's key."""
        match = _NAME.fullmatch(key.removeprefix(SNAPSHOT_PREFIX))
        if match is None:
            return None
        return cls(milliseconds=int(match[1]), tag=match[2], id=match[3])


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One complete copy of all volumes of an agent."""

    id: str
    """32 hex digits."""
    agent: str
    created_at: float
    """Seconds since the epoch."""
    tree_digest: str
    """64 hex digits."""
    status: Status
    warnings: tuple[str, ...]
    files: int
    """Everything but directories."""
    bytes: int
    """Logical size of all files."""
    new_bytes: int
    """Logical bytes that were not stored before."""
    uploaded_bytes: int
    """Bytes put into the store, but for the manifest itself."""
    consistency: Consistency
    tags: Mapping[str, str]
    volumes: tuple[str, ...]
    excludes: Mapping[str, tuple[str, ...]]
    host: str
    branches: tuple[tuple[Raw, Raw], ...] = field(repr=False)
    places: Mapping[str, Raw] = field(repr=False)
    owners: Owners = field(repr=False)

    @property
    def short_id(self) -> str:
        """Enough of the id for a person."""
        return self.id[:8]

    def encode(self) -> Raw:
        """Return the plaintext of the snapshot object."""
        body = msgpack.packb(
            {
                "version": VERSION,
                "id": bytes.fromhex(self.id),
                "agent": self.agent,
                "created_at": self.created_at,
                "tree_digest": bytes.fromhex(self.tree_digest),
                "branches": self.branches,
                "volumes": self.volumes,
                "places": dict(self.places),
                "owners": (self.owners.local, self.owners.canonical),
                "excludes": {k: list(v) for k, v in self.excludes.items()},
                "consistency": self.consistency,
                "status": self.status,
                "warnings": self.warnings,
                "tags": dict(self.tags),
                "host": self.host,
                "files": self.files,
                "bytes": self.bytes,
                "new_bytes": self.new_bytes,
                "uploaded_bytes": self.uploaded_bytes,
            }
        )
        packed = zstandard.ZstdCompressor(level=3).compress(body)
        if len(packed) < len(body):
            return b"\1" + _LENGTH.pack(len(body)) + packed
        return b"\0" + bytes(body)


def decode_snapshot(plain: bytes | bytearray, key: str) -> Snapshot:
    """Parse a snapshot object's plaintext; raises `IntegrityError`."""
    bad = IntegrityError(f"snapshot object '{key}' is damaged")
    try:
        body = msgpack.unpackb(_body(plain), use_list=False, strict_map_key=True)
        if body["version"] > VERSION:
            raise newer(f"snapshot object '{key}'")
        return _snapshot(body)
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
        struct.error,
        msgpack.UnpackException,
    ):
        raise bad from None


def _body(plain: bytes | bytearray) -> bytes:
    if plain[0] == 0:
        return bytes(plain[1:])
    (length,) = _LENGTH.unpack_from(plain, 1)
    if plain[0] != 1 or length > MAX_SNAPSHOT:
        raise ValueError
    return bytes(expand(plain[5:], length))


def _snapshot(body: Mapping[str, Any]) -> Snapshot:
    local, canonical = body["owners"]
    status, consistency = body["status"], body["consistency"]
    if status not in ("complete", "complete_with_warnings"):
        raise ValueError
    if consistency not in ("stopped", "live"):
        raise ValueError
    return Snapshot(
        id=_fixed(body["id"], ID_SIZE).hex(),
        agent=_text(body["agent"]),
        created_at=_time(body["created_at"]),
        tree_digest=_fixed(body["tree_digest"], 32).hex(),
        status=cast("Status", status),
        warnings=tuple(_text(w) for w in body["warnings"]),
        files=int(body["files"]),
        bytes=int(body["bytes"]),
        new_bytes=int(body["new_bytes"]),
        uploaded_bytes=int(body["uploaded_bytes"]),
        consistency=cast("Consistency", consistency),
        tags={_text(k): _text(v) for k, v in body["tags"].items()},
        volumes=tuple(_text(v) for v in body["volumes"]),
        excludes={_text(k): tuple(map(_text, v)) for k, v in body["excludes"].items()},
        host=_text(body["host"]),
        branches=tuple(
            (_fixed(branch, ID_SIZE), _fixed(stat, ID_SIZE))
            for branch, stat in body["branches"]
        ),
        places={_text(k): _fixed(v, ID_SIZE) for k, v in body["places"].items()},
        owners=Owners(
            local=(int(local[0]), int(local[1])),
            canonical=(int(canonical[0]), int(canonical[1])),
        ),
    )


def _fixed(value: object, size: int) -> bytes:
    if not isinstance(value, bytes) or len(value) != size:
        raise ValueError
    return value


def _time(value: float) -> float:
    if not 0 <= float(value) < _LAST_SECOND:
        raise ValueError
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
