"""Step: run the agent on a target and wait until it is healthy."""

from __future__ import annotations

from lobstertrap import lifecycle
from lobstertrap.targets.base import AgentStatus
from tasks.step import log, open_handle, step


@step(task_run_name="launch {agent} on {target}")
def launch_on(agent: str, operation: str, target: str) -> AgentStatus:
    """Return what the target shows of the agent once it is healthy."""
    status = lifecycle.launch(open_handle(agent, operation), target)
    log.info("%s: %s runs under epoch %s", target, agent, status.epoch)
    return status
