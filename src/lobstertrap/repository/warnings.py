"""What a snapshot or a restore has to tell, without saying it a million times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from lobstertrap.repository.entry import shown

_EACH = 20


class Warnings:
    """Collects warnings; the first few of a kind are named, the rest are counted."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._counts: Counter[str] = Counter()

    def add(self, path: bytes, what: str) -> None:
        """Say that `what` happened to `path`."""
        self._counts[what] += 1
        if self._counts[what] <= _EACH:
            self._lines.append(f"{shown(path)} {what}")

    def adder(self, what: str) -> Callable[[bytes], None]:
        """Return a function that adds one kind of warning."""
        return lambda path: self.add(path, what)

    def once(self, line: str) -> None:
        """Say something about the whole, once."""
        if line not in self._lines:
            self._lines.append(line)

    def finish(self) -> tuple[str, ...]:
        """Return all lines."""
        more = [
            f"and {count - _EACH} more: {what}"
            for what, count in self._counts.items()
            if count > _EACH
        ]
        return (*self._lines, *more)
