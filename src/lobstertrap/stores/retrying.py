"""A store around another that tries again, and settles writes that are in doubt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import tenacity

from lobstertrap.errors import Conflict, NotFound, Transient, Unavailable
from lobstertrap.stores.base import ObjectInfo, ObjectStore, StoredObject
from lobstertrap.stores.keys import as_buffers, size_of

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Retrying:
    """Tries `Transient` failures again: exponential backoff, full jitter, bounded.

    A conditional put whose answer was lost may have been done; when the next try then
    conflicts, the object is read back, and if it holds what was to be written, the
    put succeeded. So what is put under a condition must be unique to its writer, or it
    must not matter who wrote it. KeyboardInterrupt passes at once.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        attempts: int = 6,
        seconds: float = 60,
        first_wait: float = 0.5,
        longest_wait: float = 15,
    ) -> None:
        self._store = store
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Transient),
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(attempts),
                tenacity.stop_after_delay(seconds),
            ),
            wait=tenacity.wait_random_exponential(
                multiplier=first_wait, max=longest_wait
            ),
            before_sleep=_say,
            reraise=True,
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
        """Store `data`; a retried success is not reported as `Conflict`."""
        in_doubt = False

        def attempt() -> str:
            nonlocal in_doubt
            try:
                return self._store.put(
                    key, data, if_absent=if_absent, if_match=if_match
                )
            except Transient:
                in_doubt = True
                raise
            except Conflict:
                if not in_doubt:
                    raise
                return self._settle(key, data, if_match)

        return self._again(attempt)

    def get(self, key: str) -> StoredObject:
        """Return the whole object; raises `NotFound`."""
        return self._again(lambda: self._store.get(key))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return exactly `length` bytes from `start`."""
        return self._again(lambda: self._store.get_range(key, start, length))

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of the object; raises `NotFound`."""
        return self._again(lambda: self._store.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield objects; after a failure the listing goes on behind the last one."""
        last = ""
        running: Iterator[ObjectInfo] | None = None

        def advance() -> ObjectInfo | None:
            nonlocal running
            if running is None:
                running = self._store.list(prefix)
            try:
                return next((info for info in running if info.key > last), None)
            except Transient:
                running = None  # a generator that raised is finished
                raise

        while (found := self._again(advance)) is not None:
            last = found.key
            yield found

    def delete(self, key: str) -> None:
        """Remove the object; one that does not exist is no error."""
        self._again(lambda: self._store.delete(key))

    def _again(self, attempt: Callable[[], T]) -> T:
        # A copy for each call: tenacity keeps its statistics per object and thread.
        return self._retrying.copy()(attempt)

    def _settle(
        self, key: str, data: bytes | Sequence[bytes], if_match: str | None
    ) -> str:
        """Return the etag if the object is what an earlier try was to write.

        Raises `Conflict` when it is another's, and `Unavailable` (so: once more) while
        the earlier try is neither done nor refused.
        """
        undecided = Unavailable(f"an earlier write of {key!r} is still going on")
        try:
            found = self._store.get(key)
        except NotFound:
            if if_match is None:
                raise undecided from None
            raise Conflict(f"object {key!r} of {self.url} was deleted") from None
        if found.etag == if_match:
            raise undecided
        if len(found.data) == size_of(data) and found.data == b"".join(
            as_buffers(data)
        ):
            return found.etag
        raise Conflict(f"object {key!r} of {self.url} was written by another")


def _say(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    _log.info("trying again after attempt %d: %s", state.attempt_number, error)
