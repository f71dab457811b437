"""Step: make the destination the agent's home."""

from __future__ import annotations

from lobstertrap import migration
from tasks.step import log, open_handle, step


@step(task_run_name="commit {agent} on {destination}")
def commit_migration(agent: str, operation: str, destination: str) -> int:
    """Return the agent's epoch; the migration is closed."""
    epoch = migration.commit(open_handle(agent, operation), destination).epoch
    log.info("%s: %s lives here now", destination, agent)
    return epoch
