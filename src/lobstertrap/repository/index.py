"""The index: which pack holds a blob, in sorted tables used as they are stored.

Nothing is done per blob when an index is loaded: 800,000 blobs (50 GB) are 22 MB.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

from lobstertrap.errors import IntegrityError
from lobstertrap.repository.format import (
    CHUNKS,
    HEADER_SIZE,
    ID_SIZE,
    MAX_PACK,
    MAX_SEGMENT,
    PAGES,
    TAG_SIZE,
    Buffer,
)
from lobstertrap.repository.pack import PackTable, read_u32s, u32s

_HEAD = struct.Struct("<IIIII")
_MAX_FAN_BITS = 24
_MAX_COUNT = 1 << 28


class PackInfo(NamedTuple):
    """One pack as an index knows it."""

    id: bytes
    kind: int
    size: int


class SegmentInfo(NamedTuple):
    """Where one segment is; equal values are the same segment."""

    pack: PackInfo
    number: int
    offset: int
    stored: int
    plain: int


class Location(NamedTuple):
    """Where one blob is."""

    segment: SegmentInfo
    offset: int
    length: int


_location: Callable[[tuple[SegmentInfo, int, int]], Location]
_location = partial(tuple.__new__, Location)
"""`Location._make`, without a frame of the interpreter for each."""


class IndexTable:
    """One index object; lookups go through the fan-out to a few neighbouring ids."""

    def __init__(self, plain: Buffer) -> None:
        view = memoryview(plain)
        if view.nbytes < _HEAD.size:
            raise _damaged()
        r, p, s, b, f = _HEAD.unpack_from(view)
        if max(r, p, s, b) > _MAX_COUNT or f > _MAX_FAN_BITS:
            raise _damaged()
        fan = (1 << f) + 1
        parts = [16 * r, 16 * p, 4 * p, 4 * p, 4 * p, 4 * s, 4 * s, 4 * fan]
        parts += [16 * b, 4 * b, 4 * b, 4 * b]
        ends = [*accumulate(parts, initial=_HEAD.size)]
        if view.nbytes != ends[-1]:
            raise _damaged()
        column = [view[ends[i] : ends[i + 1]] for i in range(len(parts))]
        self.replaces = frozenset(_split(column[0]))
        self._fan_shift = 64 - f
        self._fan = read_u32s(column[7])
        self.ids = bytes(column[8])
        self._segment = read_u32s(column[9])
        self._offset = read_u32s(column[10])
        self._length = read_u32s(column[11])
        sizes, kinds, counts = (read_u32s(c) for c in column[2:5])
        self.packs = [
            PackInfo(*pack)
            for pack in zip(_split(column[1]), kinds, sizes, strict=True)
        ]
        self.segments = _segments(
            self.packs, counts, read_u32s(column[5]), read_u32s(column[6])
        )
        self._of_pack: dict[bytes, list[SegmentInfo]] | None = None
        self._check(b)

    def __len__(self) -> int:
        return len(self._length)

    def _check(self, blobs: int) -> None:
        fan = self._fan
        if fan[0] != 0 or fan[-1] != blobs or any(a > b for a, b in pairwise(fan)):
            raise _damaged()
        if blobs and max(self._segment) >= len(self.segments):
            raise _damaged()

    def row(self, blob_id: bytes) -> int:
        """Return the row of a blob, or -1."""
        slot = int.from_bytes(blob_id[:8], "big") >> self._fan_shift
        start, end = self._fan[slot] * ID_SIZE, self._fan[slot + 1] * ID_SIZE
        found = self.ids.find(blob_id, start, end)
        while found % ID_SIZE and found >= 0:  # across two ids
            found = self.ids.find(blob_id, found + 1, end)
        return found // ID_SIZE

    def rows(self, blob_id: bytes) -> range:
        """Return every row of a blob; more than one when several packs have it."""
        first = last = self.row(blob_id)
        if first < 0:
            return range(0)
        while self.ids[(last + 1) * ID_SIZE : (last + 2) * ID_SIZE] == blob_id:
            last += 1
        return range(first, last + 1)

    @property
    def columns(self) -> tuple[array[int], array[int], array[int]]:
        """Segment, offset and length of every row."""
        return self._segment, self._offset, self._length

    def segments_of(self, pack_id: bytes) -> Sequence[SegmentInfo]:
        """Return the segments of a pack, in order."""
        if self._of_pack is None:
            of_pack: dict[bytes, list[SegmentInfo]] = {}
            for segment in self.segments:
                of_pack.setdefault(segment.pack.id, []).append(segment)
            self._of_pack = of_pack
        return self._of_pack.get(pack_id, ())

    def location(self, row: int) -> Location:
        """Return where the blob of `row` is; raises `IntegrityError`."""
        segment = self.segments[self._segment[row]]
        offset, length = self._offset[row], self._length[row]
        if offset + length > segment.plain:
            raise _damaged()
        return _location((segment, offset, length))


def encode_index(packs: Iterable[PackTable], replaces: Iterable[bytes] = ()) -> bytes:
    """Return the plaintext of an index object for `packs`."""
    tables = list(packs)
    old = list(replaces)
    ids: list[bytes] = []
    columns = segment_of, offset_of, length_of = array("I"), array("I"), array("I")
    segment = 0
    for table in tables:
        first = 0
        for count in table.counts:
            lengths = table.lengths[first : first + count]
            segment_of.extend([segment] * count)
            offset_of.extend([*accumulate(lengths, initial=0)][:count])
            length_of.extend(lengths)
            first += count
            segment += 1
        ids += table.ids
    # Numbers are sorted, not rows: a million of those would be 200 MB.
    order = sorted(range(len(ids)), key=ids.__getitem__)
    bits = max(0, min(_MAX_FAN_BITS, len(ids).bit_length() - 4))
    return b"".join(
        (
            _HEAD.pack(len(old), len(tables), segment, len(ids), bits),
            *old,
            *(table.id for table in tables),
            u32s([table.size for table in tables]),
            u32s([table.kind for table in tables]),
            u32s([len(table.stored) for table in tables]),
            *(u32s(table.stored) for table in tables),
            *(u32s(table.plain) for table in tables),
            u32s(_fan_out(ids, bits)),
            *(ids[row] for row in order),
            *(u32s(column[row] for row in order) for column in columns),
        )
    )


class Index:
    """All blobs that are stored, as far as this process knows; safe for reading."""

    def __init__(
        self,
        tables: Iterable[IndexTable] = (),
        avoid: frozenset[bytes] = frozenset(),
    ) -> None:
        self._tables = sorted(tables, key=len, reverse=True)
        self.avoid = avoid
        """Condemned packs: no new snapshot rests on them, and readers use them last."""

    def add(self, table: IndexTable) -> None:
        """Make the blobs of one more table known."""
        self._tables = sorted([*self._tables, table], key=len, reverse=True)

    @property
    def packs(self) -> dict[bytes, PackInfo]:
        """Every known pack by its id."""
        return {pack.id: pack for table in self._tables for pack in table.packs}

    @property
    def tables(self) -> Sequence[IndexTable]:
        """The tables, in the order in which they are asked."""
        return self._tables

    def segments_of(self, pack_id: bytes) -> Sequence[SegmentInfo]:
        """Return all segments of a pack, in order; none of one that is not known."""
        for table in self._tables:
            found = table.segments_of(pack_id)
            if found:
                return found
        return ()

    def __contains__(self, blob_id: bytes) -> bool:
        if self.avoid:
            return any(
                location.segment.pack.id not in self.avoid
                for location in self.locations(blob_id)
            )
        for table in self._tables:  # noqa: SIM110 - called for every new chunk
            if table.row(blob_id) >= 0:
                return True
        return False

    def locations(self, blob_id: bytes) -> Iterator[Location]:
        """Yield every place where a blob is."""
        for table in self._tables:
            for row in table.rows(blob_id):
                yield table.location(row)

    def find(self, blob_id: bytes) -> Location:
        """Return where a blob is; raises `IntegrityError` when it is nowhere."""
        last_resort = None
        for table in self._tables:
            row = table.row(blob_id)
            if row < 0:
                continue
            found = table.location(row)
            if not self.avoid or found.segment.pack.id not in self.avoid:
                return found
            last_resort = found
        if last_resort is not None:
            return last_resort
        raise IntegrityError(
            f"blob {blob_id.hex()} is in no index",
            hint="run the check of the repository",
        )


def _fan_out(ids: Iterable[bytes], bits: int) -> array[int]:
    counts = array("I", bytes(4 * ((1 << bits) + 1)))
    shift = 64 - bits
    for blob_id in ids:
        counts[(int.from_bytes(blob_id[:8], "big") >> shift) + 1] += 1
    return array("I", accumulate(counts))


def _split(data: memoryview) -> list[bytes]:
    raw = bytes(data)
    return [raw[i : i + ID_SIZE] for i in range(0, len(raw), ID_SIZE)]


def _segments(
    packs: list[PackInfo], counts: array[int], stored: array[int], plain: array[int]
) -> list[SegmentInfo]:
    if sum(counts) != len(stored):
        raise _damaged()
    segments = []
    row = 0
    for pack, count in zip(packs, counts, strict=True):
        if pack.kind not in (CHUNKS, PAGES) or pack.size > MAX_PACK:
            raise _damaged()
        offset = HEADER_SIZE
        for number in range(count):
            here = SegmentInfo(pack, number, offset, stored[row], plain[row])
            if here.plain > MAX_SEGMENT or here.stored < TAG_SIZE:
                raise _damaged()
            segments.append(here)
            offset += here.stored
            row += 1
        if offset > pack.size:
            raise _damaged()
    return segments


def _damaged() -> IntegrityError:
    return IntegrityError("an index object is damaged")
