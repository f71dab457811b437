"""The reader of blobs: finds them by the index, fetches and opens segments."""

from __future__ import annotations

from collections import OrderedDict

from lobstertrap.errors import IntegrityError
from lobstertrap.repository.cache import ObjectCache
from lobstertrap.repository.crypto import Keys
from lobstertrap.repository.format import PAGES, Buffer, pack_key
from lobstertrap.repository.index import Index, PackInfo, SegmentInfo
from lobstertrap.repository.pack import open_segment, pack_cipher
from lobstertrap.stores.base import ObjectStore

_KEPT_SEGMENTS = 64
_ATTEMPTS = 2


class BlobReader:
    """Reads blobs one by one and keeps the last segments open; for one thread."""

    def __init__(
        self, store: ObjectStore, keys: Keys, index: Index, cache: ObjectCache | None
    ) -> None:
        self._store = store
        self._keys = keys
        self._index = index
        self._cache = cache
        self._segments: OrderedDict[tuple[bytes, int], memoryview] = OrderedDict()
        self._fetched: OrderedDict[bytes, bytes] = OrderedDict()

    def page(self, page_id: bytes) -> bytes:
        """Return a page, verified against its id."""
        where = self._index.find(page_id)
        segment = self.segment(where.segment)
        data = bytes(segment[where.offset : where.offset + where.length])
        if self._keys.page_id(data) != page_id:
            raise IntegrityError(f"page {page_id.hex()} is not what its id says")
        return data

    def segment(self, info: SegmentInfo) -> memoryview:
        """Return a plain segment; what arrives damaged is fetched once more."""
        key = (info.pack.id, info.number)
        found = self._segments.get(key)
        if found is not None:
            self._segments.move_to_end(key)
            return found
        for attempt in range(_ATTEMPTS):
            try:
                plain = memoryview(open_info(self._keys, info, self._stored(info)))
                break
            except IntegrityError:
                if self._cache:
                    self._cache.drop(pack_key(info.pack.id))
                self._fetched.pop(info.pack.id, None)
                if attempt == _ATTEMPTS - 1:
                    raise
        self._segments[key] = plain
        if len(self._segments) > _KEPT_SEGMENTS:
            self._segments.popitem(last=False)
        return plain

    def _stored(self, info: SegmentInfo) -> Buffer:
        if self._cache and info.pack.kind == PAGES:
            pack = self._cached_pack(info.pack, self._cache)
            return memoryview(pack)[info.offset : info.offset + info.stored]
        return self._store.get_range(pack_key(info.pack.id), info.offset, info.stored)

    def _cached_pack(self, pack: PackInfo, cache: ObjectCache) -> bytes:
        found = self._fetched.get(pack.id)
        if found is not None:
            return found
        key = pack_key(pack.id)
        data = cache.get(key)
        if data is None or len(data) != pack.size:
            data = self._store.get_range(key, 0, pack.size)
            cache.put(key, data)
        self._fetched[pack.id] = data
        if len(self._fetched) > 2:  # noqa: PLR2004 - packs are up to 16 MB
            self._fetched.popitem(last=False)
        return data


def open_info(keys: Keys, info: SegmentInfo, stored: Buffer) -> Buffer:
    """Return the plain segment from its stored bytes; names the pack when damaged."""
    try:
        cipher = pack_cipher(keys, info.pack.id)
        return open_segment(cipher, info.number, stored, info.plain)
    except IntegrityError as error:
        raise IntegrityError(
            f"segment {info.number} of pack {info.pack.id.hex()}: {error.message}",
            hint="run the check of the repository",
        ) from None
