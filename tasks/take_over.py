"""Step: make a target the home of an agent whose own is gone for good."""

from __future__ import annotations

import time

from lobstertrap import takeover
from tasks.step import load_config, log, open_handle, step


@step(task_run_name="take {agent} over to {target}")
def take_over(agent: str, operation: str, target: str, snapshot: str) -> str:
    """Return the full id of the snapshot to restore, and log what it lacks."""
    handle = open_handle(agent, operation)
    wanted = handle.record().restoring or snapshot
    found = load_config().open_repository().find(wanted, agent)
    chosen = takeover.take_over(handle, target, found.id)
    when = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(found.created_at))
    log.warning("whatever '%s' did after %s is lost", agent, when)
    return chosen
