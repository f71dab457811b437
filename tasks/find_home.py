"""Step: look up where the agent lives."""

from __future__ import annotations

from tasks.step import open_handle, step


@step(task_run_name="find {agent}")
def find_home(agent: str, operation: str) -> str:
    """Return the target's name."""
    return open_handle(agent, operation).home()
