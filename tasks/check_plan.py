"""Step: check everything that can be checked before the source is touched."""

from __future__ import annotations

from lobstertrap import migration
from lobstertrap.migration import Plan
from tasks.step import log, open_handle, step


@step(task_run_name="check plan: {agent} -> {to}")
def check_plan(agent: str, operation: str, to: str) -> Plan:
    """Return what the migration will do.

    Nothing is changed but what an earlier one that was killed has left to tidy up.
    """
    handle = open_handle(agent, operation)
    migration.retire_leftovers(handle)
    plan = migration.plan(handle, to)
    for note in dict.fromkeys(plan.notes):
        log.info("note: %s", note)
    return plan
