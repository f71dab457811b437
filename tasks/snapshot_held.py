"""Step: snapshot a running agent that is held still by freezing it or by its hooks."""

from __future__ import annotations

from typing import Any, Literal

from lobstertrap import consistency
from tasks.live_progress import live_progress
from tasks.step import open_handle, step


@step(task_run_name="snapshot {agent} on {target} ({mode})")
def snapshot_held(
    agent: str, operation: str, target: str, mode: Literal["freeze", "hook"]
) -> dict[str, Any]:
    """Return the mover's result; the agent goes on in any case."""
    take = (
        consistency.snapshot_frozen if mode == "freeze" else consistency.snapshot_hooked
    )
    with live_progress(f"snapshot {agent} on {target}"):
        return take(open_handle(agent, operation), target)
