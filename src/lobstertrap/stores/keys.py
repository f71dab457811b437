"""The rules that keys and prefixes obey, checked alike by every store."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

from lobstertrap.errors import InvalidInput

MAX_KEY = 900
"""S3 allows 1024 bytes, a store's own prefix included."""

_SEGMENT = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._=-]{1,255}"
_ONE = re.compile(_SEGMENT)
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_PREFIX = re.compile(rf"(?:{_SEGMENT}/)*[A-Za-z0-9._=-]{{0,255}}")


def is_segment(name: str) -> bool:
    """Say whether `name` may stand between the slashes of a key."""
    return _ONE.fullmatch(name) is not None


def check_key(key: str) -> str:
    """Return `key`; raises `InvalidInput` when it is not a valid one."""
    if len(key) > MAX_KEY or _KEY.fullmatch(key) is None:
        raise InvalidInput(
            f"not a valid object key: {key!r}",
            hint="use segments of A-Z a-z 0-9 . _ = - joined by single slashes",
        )
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix`; raises `InvalidInput` when no valid key can start with it."""
    if len(prefix) > MAX_KEY or _PREFIX.fullmatch(prefix) is None:
        raise InvalidInput(
            f"not a valid key prefix: {prefix!r}",
            hint="use the beginning of an object key, or an empty string for all",
        )
    return prefix


def check_condition(*, if_absent: bool, if_match: str | None) -> None:
    """Raise `InvalidInput` when both conditions are given: they exclude each other."""
    if if_absent and if_match is not None:
        raise InvalidInput(
            "a put has two conditions that exclude each other",
            hint="give if_absent for a new object or if_match for a known one",
        )


def check_range(start: int, length: int) -> None:
    """Raise `InvalidInput` for a range that cannot be."""
    if start < 0 or length < 0:
        raise InvalidInput(f"not a valid range: {length} bytes from {start}")


def as_buffers(data: bytes | Sequence[bytes]) -> Sequence[bytes]:
    """Return what `put` was given as a sequence of buffers, joined by nobody."""
    if isinstance(data, bytes | bytearray | memoryview):
        return (cast("bytes", data),)
    return data


def size_of(data: bytes | Sequence[bytes]) -> int:
    """Return how many bytes `put` was given."""
    return sum(memoryview(buffer).nbytes for buffer in as_buffers(data))
