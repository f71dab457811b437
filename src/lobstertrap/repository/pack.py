"""A pack: segments of new blobs, compressed and encrypted, with a trailer."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate

import zstandard

from lobstertrap.errors import IntegrityError
from lobstertrap.repository.crypto import TRAILER_PART, Keys, ObjectCipher
from lobstertrap.repository.format import (
    CHUNKS,
    FOOTER_SIZE,
    HEADER_SIZE,
    ID_SIZE,
    KIND_PACK,
    MAX_PACK,
    MAX_SEGMENT,
    PAGES,
    TAG_SIZE,
    Buffer,
    Header,
    encode_footer,
    parse_footer,
    parse_header,
)

LEVEL = 2
"""Of zstd: stores 2 to 4% more than level 3, in a fifth to a third less time."""

_TRAILER = struct.Struct("<III")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One segment before it is stored: blobs joined, and where each begins and ends."""

    data: Buffer
    ids: list[bytes]
    lengths: list[int]


@dataclass(slots=True, kw_only=True)
class PackTable:
    """What a trailer says: every segment and blob of one pack."""

    id: bytes
    kind: int
    size: int = 0
    stored: list[int] = field(default_factory=list)
    plain: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def add(self, stored: int, plain: int, segment: Segment) -> None:
        """Append one segment."""
        self.stored.append(stored)
        self.plain.append(plain)
        self.counts.append(len(segment.ids))
        self.ids += segment.ids
        self.lengths += segment.lengths

    def encode(self) -> bytes:
        """Return the trailer's plaintext."""
        return b"".join(
            (
                _TRAILER.pack(self.kind, len(self.stored), len(self.ids)),
                u32s(self.stored),
                u32s(self.plain),
                u32s(self.counts),
                *self.ids,
                u32s(self.lengths),
            )
        )

    def segment_offsets(self) -> list[int]:
        """Return where each segment starts in the pack object."""
        return [*accumulate(self.stored[:-1], initial=HEADER_SIZE)][: len(self.stored)]


def u32s(values: Iterable[int]) -> bytes:
    """Return little-endian 32-bit integers."""
    numbers = array("I", values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def read_u32s(data: Buffer) -> array[int]:
    """Return the integers of `u32s`."""
    numbers = array("I")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


class Compressor:
    """zstd with its context kept; one instance a thread."""

    def __init__(self, level: int = LEVEL) -> None:
        self._zstd = zstandard.ZstdCompressor(level=level)

    def shrink(self, plain: Buffer) -> Buffer:
        """Return a zstd frame, or `plain` itself when a frame is not smaller."""
        packed = self._zstd.compress(plain)
        return packed if len(packed) < memoryview(plain).nbytes else plain


def expand(stored: Buffer, plain_length: int) -> Buffer:
    """Undo `shrink`; `IntegrityError`, and never more memory than promised."""
    view = memoryview(stored)
    if view.nbytes == plain_length:
        return stored
    try:
        frame = zstandard.get_frame_parameters(view[:32])
        if frame.content_size != plain_length:
            raise IntegrityError("a compressed part has another length than promised")
        plain = zstandard.ZstdDecompressor(max_window_size=MAX_SEGMENT).decompress(
            view,
            max_output_size=plain_length,
            allow_extra_data=False,
        )
    except zstandard.ZstdError as error:
        raise IntegrityError("a compressed part is damaged") from error
    if len(plain) != plain_length:
        raise IntegrityError("a compressed part has another length than promised")
    return plain


class PackBuilder:
    """Collects sealed segments until they are a pack; not for several threads."""

    def __init__(self, keys: Keys, pack_id: bytes, kind: int) -> None:
        header = Header(kind=KIND_PACK, id=pack_id).encode()
        self._cipher = keys.cipher(header)
        self.pieces: list[bytes] = [header]
        self.table = PackTable(id=pack_id, kind=kind, size=HEADER_SIZE)

    def add(self, segment: Segment, shrunk: Buffer) -> None:
        """Encrypt one segment and append it."""
        sealed = self._cipher.seal(len(self.table.stored), shrunk)
        self.pieces.append(sealed)
        plain = memoryview(segment.data).nbytes
        self.table.add(len(sealed), plain, segment)
        self.table.size += len(sealed)

    def finish(self) -> None:
        """Append the trailer and the footer; `pieces` is then the whole object."""
        sealed = self._cipher.seal(TRAILER_PART, self.table.encode())
        self.pieces += [sealed, encode_footer(len(sealed))]
        self.table.size += len(sealed) + FOOTER_SIZE


def open_segment(
    cipher: ObjectCipher, number: int, stored: Buffer, plain_length: int
) -> Buffer:
    """Return the joined blobs of one segment."""
    if plain_length > MAX_SEGMENT:
        raise IntegrityError("a segment is larger than the format allows")
    return expand(cipher.open(number, stored), plain_length)


def pack_cipher(keys: Keys, pack_id: bytes) -> ObjectCipher:
    """Return the cipher of a pack from its id alone, for reading parts of it."""
    return keys.cipher(Header(kind=KIND_PACK, id=pack_id).encode())


def parse_pack(keys: Keys, data: Buffer, *, pack_id: bytes, key: str) -> PackTable:
    """Return the trailer of a whole pack object; raises `IntegrityError`."""
    view = memoryview(data)
    size = view.nbytes
    if not HEADER_SIZE + FOOTER_SIZE + TAG_SIZE <= size <= MAX_PACK:
        raise IntegrityError(f"pack '{key}' is truncated or too large")
    header = parse_header(
        bytes(view[:HEADER_SIZE]), kind=KIND_PACK, object_id=pack_id, key=key
    )
    length = parse_footer(bytes(view[size - FOOTER_SIZE :]), key)
    start = size - FOOTER_SIZE - length
    if start < HEADER_SIZE:
        raise IntegrityError(f"pack '{key}' is truncated or damaged")
    sealed = view[start : size - FOOTER_SIZE]
    plain = keys.cipher(header).open(TRAILER_PART, sealed)
    table = parse_trailer(plain, pack_id)
    if sum(table.stored) != start - HEADER_SIZE:
        raise IntegrityError(f"pack '{key}' is truncated or damaged")
    table.size = size
    return table


def parse_trailer(plain: Buffer, pack_id: bytes) -> PackTable:
    """Return the table in a trailer's plaintext; raises `IntegrityError`."""
    view = memoryview(plain)
    bad = IntegrityError(f"the trailer of pack {pack_id.hex()[:8]} is damaged")
    if view.nbytes < _TRAILER.size:
        raise bad
    kind, segments, blobs = _TRAILER.unpack_from(view)
    expected = _TRAILER.size + 12 * segments + (ID_SIZE + 4) * blobs
    if view.nbytes != expected or kind not in (CHUNKS, PAGES):
        raise bad
    place = _TRAILER.size
    columns = []
    for _ in range(3):
        columns.append(read_u32s(view[place : place + 4 * segments]).tolist())
        place += 4 * segments
    ids_end = place + ID_SIZE * blobs
    raw = bytes(view[place:ids_end])
    table = PackTable(
        id=pack_id,
        kind=kind,
        stored=columns[0],
        plain=columns[1],
        counts=columns[2],
        ids=[raw[i : i + ID_SIZE] for i in range(0, len(raw), ID_SIZE)],
        lengths=read_u32s(view[ids_end:]).tolist(),
    )
    _check(table, bad)
    return table


def _check(table: PackTable, bad: IntegrityError) -> None:
    if sum(table.counts) != len(table.ids):
        raise bad
    first = 0
    for stored, plain, count in zip(
        table.stored, table.plain, table.counts, strict=True
    ):
        blobs = sum(table.lengths[first : first + count])
        if blobs != plain or plain > MAX_SEGMENT or not TAG_SIZE <= stored <= MAX_PACK:
            raise bad
        first += count
