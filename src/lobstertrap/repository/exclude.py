"""Exclude patterns: a small part of .gitignore's language, done right.

- `*` any run of characters but `/`, `?` one of them, `**` any number of directories;
- a `/` at the start or in the middle ties the pattern to the volume's root, otherwise
  it matches at any depth;
- a `/` at the end matches directories only;
- what is below an excluded directory is excluded with it.

`!`, `[...]` and backslashes are refused, not misread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from lobstertrap.errors import InvalidInput


class Exclude:
    """The patterns of one volume, compiled."""

    def __init__(self, patterns: Sequence[str]) -> None:
        any_kind = [_translate(p) for p in patterns if not p.endswith("/")]
        directories = [_translate(p) for p in patterns]
        self._any = _compile(any_kind)
        self._directory = _compile(directories)

    def __bool__(self) -> bool:
        return self._directory is not None

    def matches(self, path: bytes, *, directory: bool) -> bool:
        """Say whether `path`, relative to the volume, is excluded."""
        pattern = self._directory if directory else self._any
        return pattern is not None and pattern.fullmatch(path) is not None


def _compile(sources: list[bytes]) -> re.Pattern[bytes] | None:
    return re.compile(b"|".join(sources), re.DOTALL) if sources else None


def _translate(pattern: str) -> bytes:
    body = pattern.rstrip("/")
    if not body or any(c in pattern for c in "!\\[]\0") or ".." in body.split("/"):
        raise InvalidInput(
            f"exclude pattern {pattern!r} is not supported",
            hint="use names with *, ?, ** and /; see docs/agents.md",
        )
    anchored = "/" in body
    parts = body.lstrip("/").split("/")
    regex = b"" if anchored else b"(?:.*/)?"
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            regex += b".+" if last else b"(?:.*/)?"
        else:
            regex += _translate_part(part) + (b"" if last else b"/")
    return b"(?:" + regex + b")"


def _translate_part(part: str) -> bytes:
    raw = os.fsencode(part)
    pieces = re.split(rb"(\*+|\?)", raw)
    return b"".join(
        b"[^/]*" if p.startswith(b"*") else b"[^/]" if p == b"?" else re.escape(p)
        for p in pieces
    )
