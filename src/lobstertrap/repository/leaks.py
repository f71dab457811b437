"""The leak check: secrets that stand in the files of a volume, found as they are read.

Two things are looked for in what the archiver reads anyway: the values of the agent's
own secrets, in every file, and in small text files what has the shape of a well-known
token. The second is ten times dearer, so it leaves out what others have written, and
ends after so many bytes, which is told, too. A find is told by path and by what it is,
never by its text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from lobstertrap.redaction import SecretValue

SHORTEST: Final = 8
"""Bytes of a value that is looked for; shorter ones stand everywhere by chance."""

LARGEST_TEXT: Final = 1 << 20
"""Bytes of a file in which tokens are looked for by their shape."""

MOST_TEXT: Final = 16 << 20
"""Bytes of all such files of one snapshot: a tenth of a second."""

SEARCH_ENDED: Final = (
    f"tokens were looked for by their shape in the first {MOST_TEXT >> 20} MiB of text "
    "only"
)
"""Said once by a snapshot that read more; values are looked for in all of it."""

_OTHERS: Final = (b"/node_modules/", b"/site-packages/", b"/.git/objects/", b"/.cache/")
"""Directories of what was installed or downloaded."""

_BEGINNING: Final = 1024

OnFind = Callable[[bytes, str], None]
"""Is told the path, and what the file holds."""


class _Shape(NamedTuple):
    what: str
    sign: bytes
    """Found first: that is ten times faster than the pattern."""
    pattern: re.Pattern[bytes]


_EDGE: Final = rb"(?<![A-Za-z0-9_-])"
_SHAPES: Final = tuple(
    _Shape(what, sign, re.compile(pattern))
    for what, sign, pattern in (
        # Anthropic, OpenAI and OpenRouter: sk-ant-..., sk-proj-..., sk-or-v1-...
        ("an API key (sk-...)", b"sk-", _EDGE + rb"sk-[A-Za-z0-9_-]{20,}"),
        ("a Google API key", b"AIza", _EDGE + rb"AIza[A-Za-z0-9_-]{35}"),
        ("an AWS access key", b"AKIA", _EDGE + rb"AKIA[A-Z0-9]{16}(?![A-Za-z0-9])"),
        ("a GitHub token", b"ghp_", _EDGE + rb"ghp_[A-Za-z0-9]{36}"),
        ("a GitHub token", b"github_pat_", rb"github_pat_[A-Za-z0-9_]{22,}"),
        ("a Slack token", b"xox", _EDGE + rb"xox[abeprs]-[A-Za-z0-9-]{10,}"),
        ("a Telegram bot token", b":AA", rb"(?<!\d)\d{8,10}:AA[A-Za-z0-9_-]{33}"),
        ("a private key", b"PRIVATE KEY-----", rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    )
)


class LeakCheck:
    """Looks at the content of files, whole or piece by piece."""

    def __init__(
        self,
        values: Mapping[str, SecretValue],
        on_find: OnFind,
        *,
        on_end: Callable[[str], None] = lambda _: None,
    ) -> None:
        plain = ((name, value.reveal().encode()) for name, value in values.items())
        self._values = [(name, v) for name, v in plain if len(v) >= SHORTEST]
        self._overlap = max((len(value) for _, value in self._values), default=1) - 1
        self._found: set[tuple[bytes, str]] = set()
        self._paths: set[bytes] = set()
        self._text_left = MOST_TEXT
        self._on_find = on_find
        self._on_end = on_end

    @property
    def found(self) -> list[tuple[bytes, str]]:
        """Return every find: the path, and what the file holds."""
        return sorted(self._found)

    def is_found(self, path: bytes) -> bool:
        """Say whether something was found in a file."""
        return path in self._paths

    def look(self, path: bytes, data: bytes) -> None:
        """Look at the whole content of a file."""
        for name, value in self._values:
            if value in data:
                self._tell(path, f"holds the value of secret {name}")
        self._look_for_shapes(path, data)

    def watch(self, path: bytes, size: int) -> Callable[[memoryview], None]:
        """Return what is to be given the content of a file piece by piece, in order."""
        tail = b""

        def piece(data: memoryview) -> None:
            nonlocal tail
            first, text = not tail, tail + bytes(data)
            for name, value in self._values:
                if value in text:
                    self._tell(path, f"holds the value of secret {name}")
            if first and len(data) == size <= LARGEST_TEXT:
                self._look_for_shapes(path, text)
            tail = text[max(0, len(text) - self._overlap) :]

        return piece

    def _look_for_shapes(self, path: bytes, data: bytes) -> None:
        if len(data) > LARGEST_TEXT or data.find(b"\0", 0, _BEGINNING) >= 0:
            return
        if any(place in path for place in _OTHERS):
            return
        if len(data) > self._text_left:
            self._on_end(SEARCH_ENDED)
            return
        self._text_left -= len(data)
        for what, sign, pattern in _SHAPES:
            if sign in data and pattern.search(data):
                self._tell(path, f"holds what looks like {what}")

    def _tell(self, path: bytes, what: str) -> None:
        # A file that changes while it is read is read, and looked at, again.
        if (path, what) not in self._found:
            self._found.add((path, what))
            self._paths.add(path)
            self._on_find(path, what)
