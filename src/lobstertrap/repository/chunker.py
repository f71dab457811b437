"""Where a file is cut into chunks: FastCDC, or fixed pieces for SQLite databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pyfastcdc import FastCDC

from lobstertrap.errors import Permanent

WHOLE = 64 << 10
"""Files up to this many bytes are one chunk."""

SQLITE_CHUNK = 32 << 10
SQLITE_MAGIC = b"SQLite format 3\0"

MIN_CHUNK = 16 << 10
AVERAGE_CHUNK = 64 << 10
MAX_CHUNK = 256 << 10

BUFFER = 4 << 20
"""Bytes in one read; a multiple of every fixed chunk and of the digest's blocks."""

ReadInto = Callable[[memoryview], int]
"""Fills the front of the view and returns how much; 0 at the end."""


def assert_compiled() -> None:
    """Refuse the pure-Python FastCDC: it is 200 times slower and only warns."""
    if not FastCDC.__module__.startswith("pyfastcdc.cy"):
        raise Permanent(
            "pyfastcdc's compiled module is missing",
            hint="install pyfastcdc from a wheel for this platform",
        )


class Chunker:
    """Cuts data that comes through `read_into`; one instance a thread."""

    def __init__(self, seed: int) -> None:
        self._cdc = FastCDC(
            AVERAGE_CHUNK,
            min_size=MIN_CHUNK,
            max_size=MAX_CHUNK,
            normalized_chunking=1,
            seed=seed,
        )
        self._buffer = memoryview(bytearray(BUFFER + MAX_CHUNK))

    def chunks(
        self, read_into: ReadInto, on_data: Callable[[memoryview], None]
    ) -> Iterator[memoryview]:
        """Yield the chunks of one stream; each is valid until the next one is asked.

        `on_data` sees every byte once, in order, in larger pieces.
        """
        buffer = self._buffer
        filled = _fill(read_into, buffer, 0, on_data)
        sqlite = buffer[: min(filled, 16)] == SQLITE_MAGIC
        cut = self._cut_fixed if sqlite else self._cut_by_content
        end = False
        while filled:
            end = end or filled < len(buffer)
            done = 0
            for chunk in cut(buffer[:filled], last=end):
                yield chunk
                done += len(chunk)
            if end:
                return
            rest = filled - done
            buffer[:rest] = bytes(buffer[done:filled])
            filled = _fill(read_into, buffer, rest, on_data)

    def _cut_by_content(self, data: memoryview, *, last: bool) -> Iterator[memoryview]:
        size = len(data)
        for chunk in self._cdc.cut_buf(data):
            if not last and size - chunk.offset < MAX_CHUNK:
                return  # more data could move this cut
            yield chunk.data

    @staticmethod
    def _cut_fixed(data: memoryview, *, last: bool) -> Iterator[memoryview]:
        size = len(data)
        for start in range(0, size, SQLITE_CHUNK):
            if start + SQLITE_CHUNK > size and not last:
                return
            yield data[start : start + SQLITE_CHUNK]


def _fill(
    read_into: ReadInto,
    buffer: memoryview,
    start: int,
    on_data: Callable[[memoryview], None],
) -> int:
    filled = start
    while filled < len(buffer):
        count = read_into(buffer[filled:])
        if count == 0:
            break
        filled += count
    if filled > start:
        on_data(buffer[start:filled])
    return filled
