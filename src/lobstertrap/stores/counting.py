"""A store around another that counts requests and bytes, for receipts and tests."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lobstertrap.stores.base import ObjectInfo, ObjectStore, StoredObject
from lobstertrap.stores.keys import size_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What went through a store since it was wrapped."""

    requests: dict[str, int] = field(default_factory=dict)
    """Calls by kind (`put`, `get_range`, ...), those that failed too."""
    bytes_up: int = 0
    """Bytes of puts that succeeded."""
    bytes_down: int = 0
    """Bytes of gets that succeeded."""


class Counting:
    """Counts what passes, safe for threads.

    Around `Retrying` it counts what was asked; inside, every single try.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._up = 0
        self._down = 0

    @property
    def traffic(self) -> Traffic:
        """The counts so far."""
        with self._lock:
            return Traffic(
                requests=dict(self._requests), bytes_up=self._up, bytes_down=self._down
            )

    @property
    def url(self) -> str:
        """The wrapped store's."""
        return self._store.url

    def put(
        self,
        key: str,
        data: bytes | Sequence[bytes],
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Store `data`, counted."""
        self._count("put")
        etag = self._store.put(key, data, if_absent=if_absent, if_match=if_match)
        self._add(up=size_of(data))
        return etag

    def get(self, key: str) -> StoredObject:
        """Return the whole object, counted."""
        self._count("get")
        found = self._store.get(key)
        self._add(down=len(found.data))
        return found

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return a part of the object, counted."""
        self._count("get_range")
        data = self._store.get_range(key, start, length)
        self._add(down=len(data))
        return data

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of the object, counted."""
        self._count("head")
        return self._store.head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List, counted as one request however many pages it takes."""
        self._count("list")
        return self._store.list(prefix)

    def delete(self, key: str) -> None:
        """Remove the object, counted."""
        self._count("delete")
        self._store.delete(key)

    def _count(self, kind: str) -> None:
        with self._lock:
            self._requests[kind] += 1

    def _add(self, *, up: int = 0, down: int = 0) -> None:
        with self._lock:
            self._up += up
            self._down += down
