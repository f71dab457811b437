"""Flow: look where every agent is, and tell what is not as it should be."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from tasks.publish_agents import publish_agents
from tasks.publish_snapshots import publish_snapshots
from tasks.step import watched
from tasks.stop_old_copy import stop_old_copy
from tasks.survey_agents import survey_agents


@flow(
    name="watch-agents",
    flow_run_name="look at every agent",
    persist_result=True,
    result_serializer="json",
)
def watch_agents(
    fresh_hours: Annotated[float, Field(gt=0)] = 6.0,
    stop_old_copies: bool = True,
) -> dict[str, Any]:
    """Write the tables of agents and snapshots, and emit an event for each problem.

    It changes one thing: a copy that came back after a takeover, under an epoch that
    is over, is stopped; its volumes stay. Automations (deployments/automations.py) wait
    for the events: `lobstertrap.agent.drifted` and `lobstertrap.agent.stale`.

    Args:
        fresh_hours: An agent whose last snapshot is older than this is called stale.
        stop_old_copies: Whether a copy that came back after a takeover is stopped. It
            is told in either case.
    """
    with watched():
        agents = survey_agents(fresh_hours)
        if stop_old_copies:
            for row in agents:
                if row["old_copy"]:
                    stop_old_copy(row["agent"], row["where"])
        published = publish_agents(agents)
        return {"agents": published, "snapshots": publish_snapshots()}
