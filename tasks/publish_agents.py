"""Step: write the table of agents, an artifact in the UI."""

from __future__ import annotations

from typing import Any

from tasks.artifacts import show_table
from tasks.step import step

_COLUMNS = {
    "agent": "agent",
    "where": "where",
    "state": "state",
    "healthy": "healthy",
    "epoch": "epoch",
    "snapshot": "last snapshot",
    "age_hours": "age (h)",
    "stale": "stale",
    "notes": "drift and notes",
}


@step(task_run_name="table of agents")
def publish_agents(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows and show them."""
    table = [
        {title: _cell(row[name]) for name, title in _COLUMNS.items()}
        | {"last snapshot": (row["snapshot"] or "")[:8]}
        for row in rows
    ]
    drifted = sum(bool(row["drift"]) for row in rows)
    show_table("agents", table, f"{len(rows)} agents, {drifted} not where they should")
    return rows


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else value
