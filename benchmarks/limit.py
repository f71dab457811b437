"""The limit of a first snapshot: read, zstd on two cores, upload, and nothing else.

    python -m benchmarks.limit DIRECTORY < StoreSettings as JSON

Nothing that a snapshot needs is done: no hash, no encryption, no names, no index. No
engine that compresses as well can be faster by more than what it need not read.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import zstandard

from lobstertrap.repository.pack import LEVEL
from lobstertrap.stores import open_store
from lobstertrap.stores.settings import StoreSettings

_SEGMENT = 1 << 20
_PACK = 16 << 20
_local = threading.local()


def main() -> None:
    """Read everything below a directory, and store it compressed."""
    store = open_store(StoreSettings.from_dict(json.load(sys.stdin)))
    compressors = ThreadPoolExecutor(2)
    uploads = ThreadPoolExecutor(3)
    segments: deque[Future[bytes]] = deque()
    puts: deque[Future[str]] = deque()
    pack: list[bytes] = []
    count = 0

    def collect(most: int) -> None:
        while len(segments) > most:
            pack.append(segments.popleft().result())
            if sum(map(len, pack)) >= _PACK:
                flush()

    def flush() -> None:
        nonlocal count
        while len(puts) >= 3:  # noqa: PLR2004 - as many as there are threads
            puts.popleft().result()
        puts.append(uploads.submit(store.put, f"limit/{count}", pack[:]))
        pack.clear()
        count += 1

    for segment in _segments(sys.argv[1]):
        segments.append(compressors.submit(_compress, segment))
        collect(4)
    collect(0)
    flush()
    for put in puts:
        put.result()


def _compress(data: bytearray) -> bytes:
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=LEVEL)
    return bytes(_local.compressor.compress(data))


def _segments(root: str) -> Iterator[bytearray]:
    """Yield the contents of all files, 1 MiB at a time."""
    data = bytearray()
    for path in _files(root):
        handle = os.open(path, os.O_RDONLY)
        while piece := os.read(handle, _SEGMENT):
            data += piece
            if len(data) >= _SEGMENT:
                yield data
                data = bytearray()
        os.close(handle)
    yield data


def _files(root: str) -> Iterator[str]:
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            elif entry.is_file(follow_symlinks=False):
                yield entry.path


if __name__ == "__main__":
    main()
