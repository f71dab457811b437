"""The fetcher: reads what a window of files needs, pack by pack, in few requests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lobstertrap.errors import IntegrityError
from lobstertrap.repository.blobs import open_info
from lobstertrap.repository.crypto import Keys
from lobstertrap.repository.format import pack_key
from lobstertrap.repository.index import Index, PackInfo, SegmentInfo
from lobstertrap.stores.base import ObjectStore

if TYPE_CHECKING:
    from lobstertrap.repository.placer import Target

WHOLE_PACK = 3
"""A pack is fetched whole when at least one n-th of it is wanted."""

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

    def add(self, index: Index, chunk_id: bytes, target: Target, place: int) -> int:
        """Plan one chunk at `place` of the target; returns its length."""
        segment, offset, length = index.find(chunk_id)
        pieces = self.packs[segment.pack].setdefault(segment, [])
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


def fetch(
    store: ObjectStore,
    keys: Keys,
    pack: PackInfo,
    wanted: dict[SegmentInfo, list[Piece]],
    on_bytes: Callable[[int], None],
) -> Iterator[tuple[memoryview, list[Piece]]]:
    """Yield each wanted segment of one pack, opened, with its pieces.

    What arrives damaged is fetched once more before it is an `IntegrityError`.
    """
    segments = sorted(wanted, key=lambda info: info.number)
    for run in _runs(pack, segments):
        start = run[0].offset
        length = run[-1].offset + run[-1].stored - start
        data = memoryview(store.get_range(pack_key(pack.id), start, length))
        on_bytes(length)
        for info in run:
            place = info.offset - start
            try:
                plain = open_info(keys, info, data[place : place + info.stored])
            except IntegrityError:
                again = store.get_range(pack_key(pack.id), info.offset, info.stored)
                on_bytes(info.stored)
                plain = open_info(keys, info, again)
            yield memoryview(plain), wanted[info]


def _runs(pack: PackInfo, segments: list[SegmentInfo]) -> list[list[SegmentInfo]]:
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
