"""The fetcher: reads what a window of files needs, pack by pack, in few requests."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lobstertrap.errors import IntegrityError
from lobstertrap.repository.blobs import open_info
from lobstertrap.repository.crypto import Keys
from lobstertrap.repository.format import Buffer, pack_key
from lobstertrap.repository.index import Index, PackInfo, SegmentInfo
from lobstertrap.stores.base import ObjectStore

if TYPE_CHECKING:
    from lobstertrap.repository.placer import Target

WHOLE_PACK = 3
"""A pack is fetched whole when at least one n-th of it is wanted."""

SPARE_BYTES = 32 << 20

GAP = 128 << 10
"""Two wanted segments this close are fetched together, with what is between them."""


@dataclass(slots=True)
class Piece:
    """Bytes of a segment that belong somewhere in a file."""

    target: Target
    file_offset: int
    offset: int
    length: int


@dataclass(slots=True)
class Window:
    """What is fetched and written together: bounded, whatever the snapshot's size."""

    packs: dict[PackInfo, dict[SegmentInfo, list[Piece]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    size: int = 0
    pieces: int = 0
    _last: SegmentInfo | None = None
    _last_pieces: list[Piece] = field(default_factory=list)

    def add(self, index: Index, chunk_id: bytes, target: Target, place: int) -> int:
        """Plan one chunk at `place` of the target; returns its length."""
        segment, offset, length = index.find(chunk_id)
        if segment is not self._last:  # mostly it is: chunks lie in walk order
            self._last = segment
            self._last_pieces = self.packs[segment.pack].setdefault(segment, [])
        pieces = self._last_pieces
        self.size += length
        last = pieces[-1] if pieces else None
        if (
            last is not None
            and last.target is target
            and last.file_offset + last.length == place
            and last.offset + last.length == offset
        ):
            last.length += length
        else:
            pieces.append(Piece(target, place, offset, length))
            self.pieces += 1
        return length


class Fetcher:
    """Reads and opens segments, pack by pack; safe for several threads.

    What a request brings along unasked, and the end of each request, is kept for a
    while: the next window mostly goes on there.
    """

    def __init__(self, store: ObjectStore, keys: Keys, index: Index) -> None:
        self._store = store
        self._keys = keys
        self._index = index
        self._lock = threading.Lock()
        self._spare: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()
        self._spare_bytes = 0
        self.fetched_bytes = 0

    def fetch(
        self, pack: PackInfo, wanted: dict[SegmentInfo, list[Piece]]
    ) -> Iterator[tuple[memoryview, list[Piece]]]:
        """Yield each wanted segment of one pack, opened, with its pieces.

        What arrives damaged is fetched once more before it is an `IntegrityError`.
        """
        missing = []
        for info in sorted(wanted, key=lambda info: info.number):
            stored = self._take(info)
            if stored is None:
                missing.append(info)
            else:
                yield self._open(info, stored), wanted[info]
        for run in _runs(pack, missing):
            start = run[0].offset
            data = memoryview(
                self._get(pack, start, run[-1].offset + run[-1].stored - start)
            )
            for info in run:
                place = info.offset - start
                stored_view = data[place : place + info.stored]
                yield self._open(info, stored_view), wanted[info]
            self._keep_spare(pack, run, data)

    def _open(self, info: SegmentInfo, stored: Buffer) -> memoryview:
        try:
            return memoryview(open_info(self._keys, info, stored))
        except IntegrityError:
            again = self._get(info.pack, info.offset, info.stored)
            return memoryview(open_info(self._keys, info, again))

    def _get(self, pack: PackInfo, start: int, length: int) -> bytes:
        data = self._store.get_range(pack_key(pack.id), start, length)
        with self._lock:
            self.fetched_bytes += length
        return data

    def _take(self, info: SegmentInfo) -> bytes | None:
        with self._lock:
            return self._spare.get((info.pack.id, info.number))

    def _keep_spare(
        self, pack: PackInfo, run: list[SegmentInfo], data: memoryview
    ) -> None:
        """Keep the last segment of a run, and those that came in its gaps."""
        wanted = {info.number for info in run[:-1]}
        first, last = run[0], run[-1]
        for info in self._index.segments_of(pack.id)[first.number : last.number + 1]:
            if info.number in wanted:
                continue
            place = info.offset - first.offset
            stored = bytes(data[place : place + info.stored])
            with self._lock:
                key = (pack.id, info.number)
                if key not in self._spare:
                    self._spare_bytes += len(stored)
                self._spare[key] = stored
                while self._spare_bytes > SPARE_BYTES:
                    _, old = self._spare.popitem(last=False)
                    self._spare_bytes -= len(old)


def _runs(pack: PackInfo, segments: list[SegmentInfo]) -> list[list[SegmentInfo]]:
    if not segments:
        return []
    if sum(info.stored for info in segments) * WHOLE_PACK >= pack.size:
        return [segments]
    runs = [[segments[0]]]
    for info in segments[1:]:
        last = runs[-1][-1]
        if info.offset - (last.offset + last.stored) <= GAP:
            runs[-1].append(info)
        else:
            runs.append([info])
    return runs
