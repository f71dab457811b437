"""Step: write the table of a round of snapshots, an artifact in the UI."""

from __future__ import annotations

from typing import Any

from lobstertrap.errors import Permanent
from tasks.artifacts import show_table
from tasks.step import step


@step(task_run_name="outcomes of the round")
def publish_round(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the table and show it; raises `Permanent` when a snapshot failed."""
    failed = [row for row in outcomes if row["outcome"] == "failed"]
    taken = sum(row["outcome"] == "taken" for row in outcomes)
    what = f"snapshots of {taken} of {len(outcomes)} agents were taken"
    show_table("snapshot-round", outcomes, what)
    if failed:
        lines = [f"{row['agent']}: failed: {row['message']}" for row in failed]
        raise Permanent(
            "\n  ".join([what, *lines]),
            hint="each agent's own run says more; the next round tries again",
        )
    return {"taken": taken, "agents": outcomes}
