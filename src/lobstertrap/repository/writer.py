"""The writer of blobs: new ones become segments, then packs, then index objects.

The caller's thread only copies blobs into a segment. Workers compress and encrypt,
other threads put packs into the store. Queues are bounded, and so is memory.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from lobstertrap.repository.cache import ObjectCache
from lobstertrap.repository.crypto import Keys, seal_object
from lobstertrap.repository.format import (
    CHUNKS,
    ID_SIZE,
    KIND_INDEX,
    PAGES,
    Buffer,
    Header,
    index_key,
    pack_key,
)
from lobstertrap.repository.index import Index, IndexTable, encode_index
from lobstertrap.repository.pack import Compressor, PackBuilder, PackTable, Segment
from lobstertrap.stores.base import ObjectStore

SEGMENT_SIZE = {CHUNKS: 1 << 20, PAGES: 256 << 10}
PACK_SIZE = 16 << 20
PACK_BLOBS = 1 << 16
"""Tiny files that compress well: memory goes by their number, not by their size."""
INDEX_BLOBS = 1 << 17
INDEX_PACKS = 64
COMPRESSORS = 2
UPLOADS = 3


class _Stream:
    """The open segment and the open pack of one kind of blob."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.limit = SEGMENT_SIZE[kind]
        self.lock = threading.Lock()
        self.pack: PackBuilder | None = None
        self.clear()

    def clear(self) -> None:
        self.data = bytearray()
        self.ids: list[bytes] = []
        self.lengths: list[int] = []
        self.size = 0


class BlobWriter:
    """Stores blobs; `save`, `add` and `finish` are for one thread."""

    def __init__(
        self,
        store: ObjectStore,
        keys: Keys,
        index: Index,
        *,
        cache: ObjectCache | None = None,
    ) -> None:
        self._store = store
        self._keys = keys
        self._index = index
        self._cache = cache
        self._pending: set[bytes] = set()
        self._streams = (_Stream(CHUNKS), _Stream(PAGES))
        self._compressors = ThreadPoolExecutor(COMPRESSORS, "compress")
        self._uploaders = ThreadPoolExecutor(UPLOADS, "upload")
        self._segments = threading.BoundedSemaphore(COMPRESSORS * 2)
        self._packs = threading.BoundedSemaphore(UPLOADS)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._stored: list[PackTable] = []
        self._stored_blobs = 0
        self._futures: set[Future[None]] = set()
        self._failure: BaseException | None = None
        self._closed = False
        self.new_bytes = 0
        self.uploaded_bytes = 0

    def has(self, blob_id: bytes) -> bool:
        """Say whether a blob is stored, or on its way."""
        return blob_id in self._pending or blob_id in self._index

    def save(self, kind: int, blob_id: bytes, data: Buffer) -> None:
        """Take a blob unless it is stored or on its way; `data` is copied."""
        if blob_id not in self._pending and blob_id not in self._index:
            self.add(kind, blob_id, data)

    def add(self, kind: int, blob_id: bytes, data: Buffer) -> None:
        """Take a blob that `has` denied; `data` is copied."""
        stream = self._streams[kind]
        length = len(data)
        stream.data += data
        stream.ids.append(blob_id)
        stream.lengths.append(length)
        stream.size += length
        self._pending.add(blob_id)
        if stream.size >= stream.limit:
            self._close_segment(stream)

    def finish(self) -> None:
        """Return when everything added is stored and in an index object."""
        for stream in self._streams:
            if stream.ids:
                self._close_segment(stream)
        self._wait()
        for stream in self._streams:
            if stream.pack is not None:
                self._close_pack(stream.pack)
                stream.pack = None
        self._wait()
        with self._lock:
            tables, self._stored, self._stored_blobs = self._stored, [], 0
        if tables:
            self._put_index(tables)
        self.close()

    def close(self) -> None:
        """Stop the threads; what was not stored is dropped."""
        self._closed = True
        self._compressors.shutdown(wait=False, cancel_futures=True)
        self._uploaders.shutdown(wait=True, cancel_futures=True)
        self._compressors.shutdown(wait=True)

    def _close_segment(self, stream: _Stream) -> None:
        if stream.kind == CHUNKS:
            self.new_bytes += stream.size
        segment = Segment(data=stream.data, ids=stream.ids, lengths=stream.lengths)
        stream.clear()
        self._acquire(self._segments)
        self._submit(self._compressors, lambda: self._pack(stream, segment))

    def _pack(self, stream: _Stream, segment: Segment) -> None:
        try:
            shrunk = self._compressor().shrink(segment.data)
            full = None
            with stream.lock:
                if stream.pack is None:
                    pack_id = secrets.token_bytes(ID_SIZE)
                    stream.pack = PackBuilder(self._keys, pack_id, stream.kind)
                stream.pack.add(segment, shrunk)
                table = stream.pack.table
                if table.size >= PACK_SIZE or len(table.ids) >= PACK_BLOBS:
                    full, stream.pack = stream.pack, None
            if full is not None:
                self._close_pack(full)
        finally:
            self._segments.release()

    def _close_pack(self, pack: PackBuilder) -> None:
        pack.finish()
        self._acquire(self._packs)
        self._submit(self._uploaders, lambda: self._upload(pack))

    def _upload(self, pack: PackBuilder) -> None:
        try:
            self._store.put(pack_key(pack.table.id), pack.pieces)
        finally:
            self._packs.release()
        if self._cache and pack.table.kind == PAGES:  # the next snapshot reads them
            self._cache.put(pack_key(pack.table.id), b"".join(pack.pieces))
        with self._lock:
            self.uploaded_bytes += pack.table.size
            self._stored.append(pack.table)
            self._stored_blobs += len(pack.table.ids)
            enough = self._stored_blobs >= INDEX_BLOBS
            if not enough and len(self._stored) < INDEX_PACKS:
                return
            tables, self._stored, self._stored_blobs = self._stored, [], 0
        self._put_index(tables)

    def _put_index(self, tables: list[PackTable]) -> None:
        plain = encode_index(tables)
        index_id = secrets.token_bytes(ID_SIZE)
        header = Header(kind=KIND_INDEX, id=index_id)
        pieces = seal_object(self._keys, header, plain)
        self._store.put(index_key(index_id), pieces)
        if self._cache:
            self._cache.put(index_key(index_id), b"".join(pieces))
        self._index.add(IndexTable(plain))
        with self._lock:
            self.uploaded_bytes += sum(map(len, pieces))
        for table in tables:
            self._pending.difference_update(table.ids)

    def _compressor(self) -> Compressor:
        found: Compressor | None = getattr(self._local, "compressor", None)
        if found is None:
            found = self._local.compressor = Compressor()
        return found

    def _submit(self, pool: ThreadPoolExecutor, work: Callable[[], None]) -> None:
        self._raise_failure()
        future = pool.submit(work)
        self._futures.add(future)
        future.add_done_callback(self._done)

    def _done(self, future: Future[None]) -> None:
        self._futures.discard(future)
        if not future.cancelled() and self._failure is None:
            self._failure = future.exception()

    def _acquire(self, slots: threading.BoundedSemaphore) -> None:
        while not slots.acquire(timeout=1.0):
            self._raise_failure()

    def _wait(self) -> None:
        while self._futures:
            for future in list(self._futures):
                future.exception()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise RuntimeError("the writer is closed")
