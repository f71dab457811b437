"""A progress artifact that the Prefect UI shows while bytes move."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from lobstertrap import progress
from lobstertrap.job import OnProgress, Progress

EVERY = 2.0
"""Seconds between two updates; a transfer that is over sooner makes no artifact."""

log = logging.getLogger("lobstertrap.progress")


@contextmanager
def live_progress(what: str) -> Iterator[None]:
    """Show the progress of the block in the UI and, in words, in the run's log."""
    with progress.subscribe(_Artifact(what).show):
        yield


def reporting(what: str) -> OnProgress:
    """Return what tells whoever watches how far `what` is."""
    return partial(progress.report, what)


class _Artifact:
    def __init__(self, what: str) -> None:
        self._what = what
        self._began = self._shown = time.monotonic()
        self._id: UUID | None = None
        self._unseen = False

    def show(self, _label: str, done: Progress) -> None:
        now = time.monotonic()
        if now - self._shown < EVERY:
            return
        self._shown = now
        log.info("%s: %s", self._what, _words(done, now - self._began))
        percent = 100.0 * done.done_bytes / done.total_bytes if done.total_bytes else 0
        if self._unseen:
            return
        try:
            self._publish(percent)
        except Exception as error:  # a transfer does not end because nobody can watch
            # Nor does it wait again: the agent may be down meanwhile.
            self._unseen = True
            log.debug("no progress in Prefect: %s", error)

    def _publish(self, percent: float) -> None:
        if self._id is None:
            self._id = create_progress_artifact(percent, description=self._what)  # type: ignore[assignment]
        elif isinstance(self._id, UUID):
            update_progress_artifact(self._id, percent)


def _words(done: Progress, seconds: float) -> str:
    total = f" of {done.total_bytes / 1e6:,.0f}" if done.total_bytes else ""
    rate = done.done_bytes / 1e6 / max(seconds, 0.001)
    return (
        f"{done.phase} {done.done_bytes / 1e6:,.0f}{total} MB, "
        f"{done.done_files:,} files, {rate:,.0f} MB/s"
    )
