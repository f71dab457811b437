"""Progress on stderr: a bar on a terminal, a line every few seconds otherwise."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from lobstertrap import progress
from lobstertrap.cli.text import duration, printable, printable_lines, size
from lobstertrap.redaction import redactor

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn, TaskID

    from lobstertrap.job import Progress

LINE_INTERVAL = 2.0
"""Seconds between two lines where there is no terminal."""

_MOVING = {"read", "fetch", "write", "verify"}
"""The phases in which a rate means something."""

_NARROW = 60
"""Columns below which a bar leaves no room for the words beside it."""


@contextmanager
def shown() -> Iterator[None]:
    """Show the progress that is reported in this process until the block ends."""
    with _log_lines():
        if sys.stderr.isatty():
            with Bars() as bars, progress.subscribe(bars):
                yield
        else:
            with progress.subscribe(Lines()):
                yield


class Lines:
    """Prints one plain line now and then: what, how much of it, how fast."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[str, int, float]] = {}
        self._last: float | None = None

    def __call__(self, label: str, done: Progress) -> None:
        """Take one report; most of them print nothing."""
        with self._lock:
            now = self._clock()
            phase, before, began = self._phases.get(label, ("", 0, now))
            if phase != done.phase or done.done_bytes < before:
                began = now
            self._phases[label] = (done.phase, done.done_bytes, began)
            if self._last is not None and now - self._last < LINE_INTERVAL:
                return
            self._last = now
        _to_stderr(describe(label, done, now - began))


def describe(label: str, done: Progress, seconds: float) -> str:
    """Return `snapshot tally on laptop: read 3.0 MB of 9.0 MB (33%), 1.0 MB/s, ...`."""
    parts = [f"{label}: {done.phase} {size(done.done_bytes)}"]
    if done.total_bytes:
        share = min(done.done_bytes / done.total_bytes, 1.0)
        parts[0] += f" of {size(done.total_bytes)} ({share:.0%})"
    moving = done.phase in _MOVING and seconds > 0
    rate = done.done_bytes / seconds if moving else 0.0
    if rate > 0:
        parts.append(f"{size(rate)}/s")
        left = max((done.total_bytes or 0) - done.done_bytes, 0)
        parts += [f"{duration(left / rate)} left"] if left else []
    return printable(", ".join(parts))


class Bars:
    """Draws one bar for each step, with the phase, bytes, rate and time left."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - rich only on a terminal
        from rich.progress import Progress as RichProgress  # noqa: PLC0415

        console = Console(file=sys.stderr, highlight=False, markup=False)
        columns = _columns(narrow=console.width < _NARROW)
        self._bars: RichProgress = RichProgress(*columns, console=console)
        self._tasks: dict[str, tuple[TaskID, Progress]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # it is done, also where the last report came before the end
            for task, done in self._tasks.values():
                total = done.total_bytes or done.done_bytes or 1
                self._bars.update(task, total=total, completed=total)
        self._bars.stop()

    def __call__(self, label: str, done: Progress) -> None:
        """Move the bar of this step; a new phase starts it again."""
        with self._lock:
            known = self._tasks.get(label)
            task = known[0] if known else self._bars.add_task("", total=None)
            before = known[1] if known else None
            self._tasks[label] = (task, done)
        if before is None or before.phase != done.phase:
            text = printable(f"{label}: {done.phase}")
            self._bars.reset(task, description=text)
        self._bars.update(task, completed=done.done_bytes, total=done.total_bytes)


def _columns(*, narrow: bool) -> list[ProgressColumn]:
    from rich import progress as rich  # noqa: PLC0415 - rich only on a terminal

    words = rich.TextColumn("{task.description}", markup=False)
    if narrow:
        return [words, rich.TaskProgressColumn()]
    return [
        words,
        rich.BarColumn(bar_width=None),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    ]


class _Stderr(logging.Handler):
    """Writes a record to whatever stderr is now: above a bar when one is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "lobstertrap.progress":
            return  # the same progress in words, for the log of a flow run
        _to_stderr(printable_lines(record.getMessage()))


@contextmanager
def _log_lines() -> Iterator[None]:
    """Show our own log from INFO up: why something waits, and what was mended."""
    logger, handler = logging.getLogger("lobstertrap"), _Stderr(logging.INFO)
    handler.addFilter(redactor)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(before or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the command line
