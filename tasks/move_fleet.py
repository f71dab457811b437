"""Step: migrate many agents, a few at a time."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from typing import Any

from prefect.client.orchestration import get_client

from lobstertrap.fleet import Commands, move_all
from tasks.step import log, step


@step(task_run_name="migrate {agents} -> {to}")
def move_fleet(agents: list[str], to: str, parallel: int) -> list[dict[str, Any]]:
    """Return what became of each; a failure is an outcome, and stops no other."""
    with get_client(sync_client=True) as client:  # also where it is a server of ours
        server = str(client.api_url).rstrip("/")
    commands = Commands(to, {**os.environ, "PREFECT_API_URL": server})
    outcomes = move_all(agents, commands.migrate, parallel=parallel, end=commands.end)
    for outcome in outcomes:
        log.log(logging.INFO if outcome.moved else logging.ERROR, "%s", outcome)
    return [asdict(outcome) for outcome in outcomes]
