"""Step: write the table of a fleet's migration, an artifact in the UI."""

from __future__ import annotations

from typing import Any

from prefect.artifacts import create_table_artifact

from lobstertrap.errors import Permanent
from lobstertrap.fleet import Outcome
from tasks.step import step


@step(task_run_name="outcomes: {source} -> {to}")
def publish_fleet(
    source: str, to: str, outcomes: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the table and show it; raises `Permanent` when an agent did not move."""
    moved = sum(bool(outcome["moved"]) for outcome in outcomes)
    what = f"{moved} of {len(outcomes)} agents moved from '{source}' to '{to}'"
    create_table_artifact(outcomes, key=f"fleet-{source}-{to}", description=what)
    if moved < len(outcomes):
        lines = [str(Outcome(**outcome)) for outcome in outcomes]
        raise Permanent(
            "\n  ".join([what, *lines]),
            hint="mend what the lines say, and run the same command again: it goes on "
            "with those that are left",
        )
    return {"source": source, "to": to, "moved": moved, "agents": outcomes}
