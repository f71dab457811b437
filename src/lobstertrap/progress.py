"""Where progress goes: whoever watches in this process subscribes, steps report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lobstertrap.job import Progress

Watcher = Callable[[str, Progress], None]
"""Gets the label of the step (`snapshot tally on laptop`) and how far it is."""

_watchers: list[Watcher] = []


@contextmanager
def subscribe(watcher: Watcher) -> Iterator[None]:
    """Send every report in this process to `watcher` until the block ends."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def report(label: str, progress: Progress) -> None:
    """Tell every watcher how far the step called `label` is."""
    for watcher in tuple(_watchers):
        watcher(label, progress)
