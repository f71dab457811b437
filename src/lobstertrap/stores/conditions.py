"""The question whether a store really refuses a write whose condition fails."""

from __future__ import annotations

import secrets

from lobstertrap.errors import Conflict, Refused
from lobstertrap.stores.base import ObjectStore

PROBE_PREFIX = "probe/"
"""Where the throwaway keys are; a leftover of a killed probe may be deleted."""

_HINT = (
    "use a store that honours If-None-Match and If-Match on PUT (AWS S3, SeaweedFS, "
    "MinIO, Ceph, or a directory); without them two holders could both own an agent"
)


def require_conditional_writes(store: ObjectStore) -> None:
    """Raise `Refused` unless the store refuses writes whose condition does not hold.

    Some servers accept a condition and ignore it, so it is tried with a throwaway key:
    five small writes, one delete.
    """
    key = f"{PROBE_PREFIX}conditions-{secrets.token_hex(8)}"
    try:
        _probe(store, key)
    finally:
        store.delete(key)


def _probe(store: ObjectStore, key: str) -> None:
    _must_refuse(store, key, b"nothing there", if_match=_UNKNOWN_ETAG)
    first = _must_accept(store, key, b"first", if_absent=True)
    _must_refuse(store, key, b"second", if_absent=True)
    _must_accept(store, key, b"third", if_match=first)
    _must_refuse(store, key, b"fourth", if_match=first)


_UNKNOWN_ETAG = "0123456789abcdef0123456789abcdef"


def _must_accept(
    store: ObjectStore,
    key: str,
    data: bytes,
    *,
    if_absent: bool = False,
    if_match: str | None = None,
) -> str:
    try:
        return store.put(key, data, if_absent=if_absent, if_match=if_match)
    except Conflict as error:
        raise Refused(
            f"{store.url} refuses a write whose condition holds", hint=_HINT
        ) from error


def _must_refuse(
    store: ObjectStore,
    key: str,
    data: bytes,
    *,
    if_absent: bool = False,
    if_match: str | None = None,
) -> None:
    condition = "if-none-match" if if_absent else "if-match"
    try:
        store.put(key, data, if_absent=if_absent, if_match=if_match)
    except Conflict:
        return
    raise Refused(
        f"{store.url} accepts a write and ignores its {condition} condition", hint=_HINT
    )
