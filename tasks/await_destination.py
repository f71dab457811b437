"""Step: wait until the agent is healthy at the destination."""

from __future__ import annotations

from lobstertrap import migration
from tasks.step import log, open_handle, step


@step(task_run_name="wait for {agent} on {destination}")
def await_destination(agent: str, operation: str, destination: str) -> float:
    """Return the downtime in seconds."""
    downtime = migration.await_healthy(open_handle(agent, operation))
    log.info("%s: %s is healthy; it was down for %.1f s", destination, agent, downtime)
    return downtime
