"""The contract of an object store, which every implementation keeps.

Guarantees, checked by tests/contract/test_stores.py on every implementation:

- *atomic put*: a reader sees the whole old object or the whole new one, never a mix,
  and after a crash of the writer the one or the other;
- *read after write*: what `put` returned from is what `get`, `head` and `list` show;
- *conditions*: of any number of concurrent `put(if_absent=True)` or `put(if_match=E)`
  on one key exactly one wins, the others raise `Conflict`; a condition is never
  silently ignored (see `require_conditional_writes`);
- *errors*: `NotFound` when the key does not exist, `Conflict` when a condition fails,
  `AccessDenied` for credentials, `NoSpace` for a full disk, `Unavailable` or `TimedOut`
  for everything that may pass; nothing of a vendor's SDK escapes.

Keys are relative, slash-separated, of `[A-Za-z0-9._=-]` segments that are neither `.`
nor `..`; anything else raises `InvalidInput`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """What a store knows of an object without its bytes."""

    key: str
    size: int
    """Bytes."""
    etag: str
    """Opaque; changes whenever the content changes; what `if_match` compares."""
    modified: float
    """Seconds since the epoch, by the store's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object's bytes and the etag that they had when they were read."""

    data: bytes
    etag: str


class ObjectStore(Protocol):
    """Named, immutable-or-replaced byte strings; the module says what is promised."""

    @property
    def url(self) -> str:
        """Where this is, for messages: never with credentials."""

    def put(
        self,
        key: str,
        data: bytes | Sequence[bytes],
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Store `data` (one buffer, or several to be joined) and return its etag.

        With `if_absent`, raises `Conflict` when the key exists; with `if_match`, when
        the present etag differs or the key does not exist.
        """

    def get(self, key: str) -> StoredObject:
        """Return the whole object; raises `NotFound`."""

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return exactly `length` bytes from `start`; `NotFound` if the key is absent.

        Raises `IntegrityError` when the object ends before `start + length`.
        """

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of the object; raises `NotFound`."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose key starts with `prefix`, sorted by key."""

    def delete(self, key: str) -> None:
        """Remove the object; one that does not exist is no error."""
