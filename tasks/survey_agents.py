"""Step: ask the store and every target where the agents are."""

from __future__ import annotations

import time
from typing import Any

from lobstertrap.survey import survey
from lobstertrap.whereabouts import AgentRow, agent_rows
from tasks.events import tell, tell_all
from tasks.step import load_config, log, step


@step(task_run_name="ask every target")
def survey_agents(fresh_hours: float) -> list[dict[str, Any]]:
    """Return a row for each agent and stray copy; tell automations of problems."""
    config, now = load_config(), time.time()
    found = survey(config, config.agent_names)
    rows = [_row(row, now, fresh_hours) for row in agent_rows(found)]
    for row in rows:
        if row["where"] in (None, *config.target_names):  # others' workers see theirs
            _tell(row)
    for target, problem in found.bad_targets.items():
        log.warning("target '%s' does not answer: %s", target, problem)
        tell_all("target.silent", target=target, problem=problem)
    tell_all("watched", agents=len(rows))
    return rows


def _row(row: AgentRow, now: float, fresh_hours: float) -> dict[str, Any]:
    age = None if row.snapshot_at is None else (now - row.snapshot_at) / 3600
    lives = row.target is not None and row.should_be is not None
    return {
        "agent": row.agent,
        "where": row.target,
        "state": row.state,
        "healthy": row.healthy,
        "epoch": row.epoch,
        "snapshot": row.snapshot,
        "age_hours": None if age is None else round(max(age, 0.0), 2),
        "stale": lives and (age is None or age > fresh_hours),
        "drift": "; ".join(row.drift),
        "notes": "; ".join(row.notes),
        "old_copy": row.old_copy,
    }


def _tell(row: dict[str, Any]) -> None:
    if row["drift"]:
        log.warning("%s: %s", row["agent"], row["drift"])
        tell(row["agent"], "drifted", where=row["where"], drift=row["drift"])
    if row["stale"]:
        age = row["age_hours"]
        what = "no snapshot" if age is None else f"its last snapshot is {age} h old"
        log.warning("%s: %s", row["agent"], what)
        tell(row["agent"], "stale", where=row["where"], age_hours=age)
