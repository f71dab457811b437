"""Step: check everything that can be checked before the source is touched."""

from __future__ import annotations

from lobstertrap import migration
from lobstertrap.migration import Plan
from tasks.step import log, open_handle, step


@step(task_run_name="check plan: {agent} -> {to}")
def check_plan(agent: str, operation: str, to: str) -> Plan:
    """Return what the migration will do; nothing is changed."""
    plan = migration.plan(open_handle(agent, operation), to)
    for note in dict.fromkeys(plan.notes):
        log.info("note: %s", note)
    return plan
