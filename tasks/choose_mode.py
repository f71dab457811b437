"""Step: decide how the agent is held still for a snapshot."""

from __future__ import annotations

from lobstertrap import consistency
from lobstertrap.consistency import Mode
from tasks.step import open_handle, step


@step(task_run_name="choose how {agent} is held still")
def choose_mode(agent: str, operation: str, asked: Mode | None) -> Mode:
    """Return what was asked for, or what the agent's spec says."""
    return consistency.choose_mode(open_handle(agent, operation), asked)
