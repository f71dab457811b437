"""Step: stop the agent for a moment."""

from __future__ import annotations

from lobstertrap import lifecycle
from tasks.step import open_handle, step


@step(task_run_name="pause {agent} on {target}")
def pause_agent(agent: str, operation: str, target: str) -> None:
    """Return when it is proven stopped; its record still says that it should run."""
    lifecycle.pause(open_handle(agent, operation), target)
