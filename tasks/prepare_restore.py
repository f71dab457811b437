"""Step: stop the agent and save what its volumes hold before they are overwritten."""

from __future__ import annotations

from lobstertrap import lifecycle
from tasks.live_progress import live_progress
from tasks.step import load_config, open_handle, step


@step(task_run_name="prepare restore of {agent} on {target}")
def prepare_restore(agent: str, operation: str, target: str, snapshot: str) -> str:
    """Return the full id of the snapshot to restore, found before anything stops."""
    handle = open_handle(agent, operation)
    unfinished = handle.record().restoring
    repository = load_config().open_repository()
    found = unfinished or repository.find(snapshot, agent).id
    with live_progress(f"save {agent} on {target} before the restore"):
        return lifecycle.prepare_restore(handle, target, found)
