"""What became of one agent in a round over all of them, as a line of its table."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import State

from lobstertrap.errors import Held
from tasks.words import megabytes


def outcome_of(agent: str, state: State[Any]) -> dict[str, Any]:
    """Return what a snapshot's final state says; a held agent's was only skipped."""
    if state.is_completed():
        taken = state.result()
        return {
            "agent": agent,
            "outcome": "taken",
            "target": taken["target"],
            "snapshot": str(taken["snapshot"])[:8],
            "new": megabytes(taken.get("new_bytes", 0)),
            "message": "; ".join(taken.get("warnings", [])),
        }
    error = state.result(raise_on_failure=False)
    return {
        "agent": agent,
        "outcome": "skipped" if isinstance(error, Held) else "failed",
        "target": "",
        "snapshot": "",
        "new": "",
        "message": str(getattr(error, "message", None) or state.message or error),
    }
