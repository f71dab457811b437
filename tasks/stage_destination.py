"""Step: bring the image and the secrets to the destination."""

from __future__ import annotations

from lobstertrap import migration
from tasks.step import open_handle, step


@step(task_run_name="stage {agent} on {destination}")
def stage_destination(agent: str, operation: str, destination: str) -> str:
    """Return the identity of the image that will run there."""
    del destination  # names the run; the journal says which it is
    return migration.stage(open_handle(agent, operation))
