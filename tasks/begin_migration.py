"""Step: open the journal of a migration."""

from __future__ import annotations

from lobstertrap import migration
from lobstertrap.migration import Plan
from tasks.step import open_handle, step


@step(task_run_name="begin migration of {agent}")
def begin_migration(agent: str, operation: str, plan: Plan) -> str:
    """Return the migration's id; one that is open is continued."""
    return migration.begin(open_handle(agent, operation), plan).id
