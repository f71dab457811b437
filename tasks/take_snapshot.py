"""Step: snapshot the agent's volumes beside them."""

from __future__ import annotations

from typing import Any

from lobstertrap import lifecycle
from lobstertrap.lifecycle import Consistency
from tasks.live_progress import live_progress
from tasks.step import log, open_handle, step
from tasks.words import snapshot_words


@step(task_run_name="snapshot {agent} on {target} ({consistency})")
def take_snapshot(
    agent: str, operation: str, target: str, consistency: Consistency, purpose: str
) -> dict[str, Any]:
    """Return the mover's result: id, digest, warnings and bytes."""
    with live_progress(f"snapshot {agent} on {target}"):
        taken = lifecycle.take_snapshot(
            open_handle(agent, operation),
            target,
            consistency=consistency,
            purpose=purpose,
        )
    log.info("snapshot (%s) %s", purpose, snapshot_words(taken))
    return taken
