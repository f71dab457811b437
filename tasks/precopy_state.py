"""Step: copy the state while the source still runs."""

from __future__ import annotations

from typing import Any

from lobstertrap import migration
from tasks.live_progress import live_progress
from tasks.step import log, open_handle, step
from tasks.words import restore_words, snapshot_words


@step(task_run_name="pre-copy {agent}: {source} -> {destination}")
def precopy_state(
    agent: str, operation: str, source: str, destination: str
) -> list[dict[str, Any]]:
    """Return for each round the results of the snapshot and of the restore."""
    with live_progress(f"pre-copy {agent}: {source} -> {destination}"):
        rounds = migration.precopy(open_handle(agent, operation))
    for copied in rounds:
        log.info("snapshot of the running agent %s", snapshot_words(copied["snapshot"]))
        log.info("%s: %s", destination, restore_words(copied["restore"]))
    return rounds
