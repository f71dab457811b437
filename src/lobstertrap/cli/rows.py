"""The table of `status`: a line for each agent, stray copy and silent target."""

from __future__ import annotations

from lobstertrap.cli.text import age
from lobstertrap.whereabouts import AgentRow, TargetRow

COLUMNS = (
    "agent",
    "target",
    "state",
    "health",
    "epoch",
    "snapshot",
    "address",
    "notes",
)


def agent_cells(row: AgentRow, now: float) -> list[str]:
    """Return the line of an agent at one place."""
    health = {True: "healthy", False: "not healthy", None: "-"}[row.healthy]
    return [
        row.agent,
        row.target or "-",
        row.state,
        health,
        "-" if row.epoch is None else str(row.epoch),
        "-" if row.snapshot_at is None else age(row.snapshot_at, now),
        ", ".join(f"{k} {v}" for k, v in row.addresses.items()),
        "; ".join(row.notes).replace("\n", "; "),
    ]


def target_cells(row: TargetRow) -> list[str]:
    """Return the line of a target that does not answer."""
    return ["-", row.name, "unreachable", "-", "-", "-", "", row.problem or ""]
