"""The constants, headers and limits of docs/repository-format.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from lobstertrap.errors import IntegrityError, InvalidInput

Buffer = bytes | bytearray | memoryview
"""Bytes, wherever they lie."""

VERSION = 1
PREFIX = "repository/"
CONFIG_KEY = PREFIX + "config"
INDEX_PREFIX = PREFIX + "index/"
SNAPSHOT_PREFIX = PREFIX + "snapshots/"
PACK_PREFIX = PREFIX + "packs/"
CONDEMNED_PREFIX = PREFIX + "condemned/"
LANDING_PREFIX = PREFIX + "landings/"

KIND_PACK = b"P"
KIND_INDEX = b"I"
KIND_SNAPSHOT = b"S"
KIND_CONDEMNED = b"C"
KIND_LANDING = b"L"

CHUNKS = 0
PAGES = 1

ID_SIZE = 16
HOLE = bytes(ID_SIZE)
TAG_SIZE = 16
HEADER_SIZE = 24
FOOTER_SIZE = 8

MAX_CONFIG = 256 << 10
MAX_PACK = 128 << 20
MAX_SEGMENT = 64 << 20
MAX_TRAILER = 16 << 20
MAX_INDEX = 512 << 20
MAX_SNAPSHOT = 64 << 20
MAX_CONDEMNED = 64 << 20

_HEADER = struct.Struct("<4sccBB16s")
_MAGIC = b"LTRP"
_END = b"LTRE"
_FOOTER = struct.Struct("<I4s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first 24 bytes of every object but the config."""

    kind: bytes
    id: bytes

    def encode(self) -> bytes:
        """Return the bytes that stand first and are authenticated with every part."""
        return _HEADER.pack(_MAGIC, self.kind, bytes([VERSION]), 0, 0, self.id)


def parse_header(data: bytes, *, kind: bytes, object_id: bytes, key: str) -> bytes:
    """Return the header of object `key` after checking that it is what it should be."""
    if len(data) < HEADER_SIZE:
        raise IntegrityError(f"object '{key}' is truncated")
    magic, found, version, keying, _, found_id = _HEADER.unpack_from(data)
    if magic != _MAGIC or found != kind:
        raise IntegrityError(f"object '{key}' is not what its name says")
    if version[0] > VERSION or keying != 0:
        raise newer(f"object '{key}'")
    if version[0] != VERSION or found_id != object_id:
        raise IntegrityError(f"object '{key}' is not what its name says")
    return bytes(data[:HEADER_SIZE])


def newer(what: str) -> InvalidInput:
    """Return the error for a version that this program does not know."""
    return InvalidInput(
        f"{what} was written by a newer version of lobster trap",
        hint="upgrade lobster trap here to at least the version that wrote it",
    )


def encode_footer(trailer_length: int) -> bytes:
    """Return the last 8 bytes of a pack."""
    return _FOOTER.pack(trailer_length, _END)


def parse_footer(data: bytes, key: str) -> int:
    """Return the stored length of the trailer from the last 8 bytes of pack `key`."""
    if len(data) != FOOTER_SIZE:
        raise IntegrityError(f"pack '{key}' is truncated")
    length, end = _FOOTER.unpack(data)
    if end != _END or not TAG_SIZE <= length <= MAX_TRAILER:
        raise IntegrityError(f"pack '{key}' is truncated or damaged")
    return int(length)


def pack_key(pack_id: bytes) -> str:
    """Return the key of the pack object."""
    name = pack_id.hex()
    return f"{PACK_PREFIX}{name[:2]}/{name}"


def index_key(index_id: bytes) -> str:
    """Return the key of the index object."""
    return INDEX_PREFIX + index_id.hex()
