"""A store in this process's memory, which keeps every promise but to outlive it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from lobstertrap.errors import Conflict, IntegrityError, NotFound
from lobstertrap.stores.base import ObjectInfo, StoredObject
from lobstertrap.stores.keys import (
    as_buffers,
    check_condition,
    check_key,
    check_prefix,
    check_range,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    data: bytes = field(repr=False)
    info: ObjectInfo


class MemoryStore:
    """Objects in a dictionary, safe for threads; `now` is the store's clock."""

    def __init__(
        self, url: str = "memory://", *, now: Callable[[], float] = time.time
    ) -> None:
        self._url = url
        self._now = now
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._puts = 0

    @property
    def url(self) -> str:
        """What messages call it."""
        return self._url

    def put(
        self,
        key: str,
        data: bytes | Sequence[bytes],
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Store `data`; raises `Conflict` when the condition does not hold."""
        check_key(key)
        check_condition(if_absent=if_absent, if_match=if_match)
        joined = b"".join(as_buffers(data))
        with self._lock:
            present = self._kept.get(key)
            etag = None if present is None else present.info.etag
            if (if_absent and etag is not None) or if_match not in {None, etag}:
                raise Conflict(f"object {key!r} of {self.url} is not as expected")
            self._puts += 1
            info = ObjectInfo(
                key=key, size=len(joined), etag=f"{self._puts}", modified=self._now()
            )
            self._kept[key] = _Kept(data=joined, info=info)
            return info.etag

    def get(self, key: str) -> StoredObject:
        """Return the whole object; raises `NotFound`."""
        found = self._find(key)
        return StoredObject(data=found.data, etag=found.info.etag)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return exactly `length` bytes from `start`."""
        check_range(start, length)
        found = self._find(key)
        if found.info.size < start + length:
            raise IntegrityError(
                f"object {key!r} of {self.url} ends before byte {start + length}"
            )
        return found.data[start : start + length]

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of the object; raises `NotFound`."""
        return self._find(key).info

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects that are there now, sorted by key."""
        check_prefix(prefix)
        with self._lock:
            found = [
                k.info for name, k in self._kept.items() if name.startswith(prefix)
            ]
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, key: str) -> None:
        """Remove the object; one that does not exist is no error."""
        check_key(key)
        with self._lock:
            self._kept.pop(key, None)

    def _find(self, key: str) -> _Kept:
        check_key(key)
        with self._lock:
            found = self._kept.get(key)
        if found is None:
            raise NotFound(f"object {key!r} does not exist in {self.url}")
        return found
