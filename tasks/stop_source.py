"""Step: stop the source for good, with its full grace."""

from __future__ import annotations

from lobstertrap import migration
from tasks.step import log, open_handle, step


@step(task_run_name="stop {agent} on {source}")
def stop_source(agent: str, operation: str, source: str) -> None:
    """Return when the source is proven stopped."""
    migration.quiesce(open_handle(agent, operation))
    log.info("%s: %s is stopped", source, agent)
