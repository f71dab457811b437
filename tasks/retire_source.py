"""Step: remove the stopped instance and its secrets at the old place."""

from __future__ import annotations

from lobstertrap import migration
from tasks.step import open_handle, step


@step(task_run_name="retire {agent} on {source}")
def retire_source(agent: str, operation: str, source: str) -> None:
    """Leave the volumes: a stale copy makes the way back cheap."""
    migration.retire(open_handle(agent, operation), source)
