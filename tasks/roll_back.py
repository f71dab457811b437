"""Step: undo an open migration."""

from __future__ import annotations

from lobstertrap import migration
from tasks.step import log, open_handle, step


@step(task_run_name="roll back {agent}")
def roll_back(agent: str, operation: str) -> str | None:
    """Return the target where the agent runs again; None if nothing was open."""
    source = migration.rollback(open_handle(agent, operation))
    if source is not None:
        log.info("%s: %s is where it was before the migration", source, agent)
    return source
