"""Step: run the agent again if its record says that it should run."""

from __future__ import annotations

from lobstertrap import lifecycle
from tasks.step import open_handle, step


@step(task_run_name="resume {agent} on {target}")
def resume_agent(agent: str, operation: str, target: str) -> str:
    """Return the agent's phase there."""
    return lifecycle.resume(open_handle(agent, operation), target).phase
