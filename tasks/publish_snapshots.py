"""Step: write the table of snapshots, an artifact in the UI."""

from __future__ import annotations

import time

from tasks.artifacts import show_table
from tasks.step import load_config, step
from tasks.words import megabytes

NEWEST = 200
"""How many have a line: a page with thousands of them shows nothing."""


@step(task_run_name="table of snapshots")
def publish_snapshots() -> int:
    """Return how many there are, and show the newest, the newest first."""
    found = load_config().open_repository().snapshots()
    rows = [
        {
            "snapshot": snapshot.short_id,
            "agent": snapshot.agent,
            "taken": time.strftime(
                "%Y-%m-%d %H:%M:%SZ", time.gmtime(snapshot.created_at)
            ),
            "on": snapshot.tags.get("target", ""),
            "purpose": snapshot.tags.get("purpose", ""),
            "files": snapshot.files,
            "size": megabytes(snapshot.bytes),
            "new": megabytes(snapshot.new_bytes),
            "warnings": len(snapshot.warnings),
        }
        for snapshot in reversed(found[-NEWEST:])
    ]
    show_table("snapshots", rows, f"{len(found)} snapshots, the newest first")
    return len(found)
