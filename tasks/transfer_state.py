"""Step: move what changed since the pre-copy, and verify all of it."""

from __future__ import annotations

from typing import Any

from lobstertrap import migration
from tasks.live_progress import live_progress
from tasks.step import log, open_handle, step
from tasks.words import restore_words, snapshot_words


@step(task_run_name="transfer {agent}: {source} -> {destination}")
def transfer_state(
    agent: str, operation: str, source: str, destination: str
) -> dict[str, Any]:
    """Return the results of the last snapshot and of its restore."""
    with live_progress(f"transfer {agent}: {source} -> {destination}"):
        moved = migration.transfer(open_handle(agent, operation))
    if moved:
        log.info("snapshot of the stopped agent %s", snapshot_words(moved["snapshot"]))
        log.info("%s: %s", destination, restore_words(moved["restore"]))
    return moved
