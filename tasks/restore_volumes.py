"""Step: make the agent's volumes on a target equal to a snapshot."""

from __future__ import annotations

from typing import Any

from lobstertrap import lifecycle
from tasks.live_progress import live_progress
from tasks.step import log, open_handle, step
from tasks.words import restore_words


@step(task_run_name="restore {agent} on {target}")
def restore_volumes(
    agent: str, operation: str, target: str, snapshot: str
) -> dict[str, Any]:
    """Return the mover's result: digest, bytes and what was written."""
    with live_progress(f"restore {agent} on {target}"):
        handle = open_handle(agent, operation)
        result = lifecycle.restore_home(handle, target, snapshot=snapshot)
    log.info("%s: %s", target, restore_words(result))
    return result
