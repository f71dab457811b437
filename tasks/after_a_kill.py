"""What is done for a migration whose process was killed; Prefect's runner calls it.

A flow rolls back by itself when it fails or is cancelled, as long as it lives. Prefect
gives a cancelled run 30 seconds and then kills it, and a process may be killed at any
time: the runner that started it calls these afterwards, in a process of its own.
"""

from __future__ import annotations

import logging
from typing import Any

from prefect.client.schemas.objects import FlowRun, State

from lobstertrap import migration
from lobstertrap.lease import read_record
from tasks.choices import only_agent
from tasks.step import load_config

log = logging.getLogger("lobstertrap.migration")


def roll_back_cancelled(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Finish the rollback that a cancelled run had no time for."""
    del flow, state
    _roll_back(flow_run, although_launched=True)


def roll_back_crashed(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Undo what a killed run had begun, unless the destination may run already.

    Then its volumes may be the newest state: the next `migrate` goes on from there.
    """
    del flow, state
    _roll_back(flow_run, although_launched=False)


def _roll_back(flow_run: FlowRun, *, although_launched: bool) -> None:
    agent = flow_run.parameters.get("agent") or only_agent()
    config = load_config()
    record = read_record(config.open_store(), agent)
    journal = record.migration if record else None
    if record and journal is None and record.leftovers:  # killed after the commit
        with config.hold(agent, "tidy up", repository=False) as handle:
            migration.retire_leftovers(handle)
    if journal is None or (journal.launched and not although_launched):
        return
    with config.hold(agent, "roll back", repository=False) as handle:
        log.info("agent '%s' runs again on %s", agent, migration.rollback(handle))
