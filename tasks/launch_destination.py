"""Step: raise the epoch and run the agent at the destination."""

from __future__ import annotations

from lobstertrap import migration
from tasks.step import log, open_handle, step


@step(task_run_name="launch {agent} on {destination}")
def launch_destination(agent: str, operation: str, destination: str) -> int:
    """Return the epoch under which it runs."""
    epoch = migration.launch(open_handle(agent, operation))
    log.info("%s: %s is launched under epoch %d", destination, agent, epoch)
    return epoch
