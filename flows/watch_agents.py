"""Flow: look where every agent is, and tell what is not as it should be."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from tasks.publish_agents import publish_agents
from tasks.publish_snapshots import publish_snapshots
from tasks.step import watched
from tasks.survey_agents import survey_agents


@flow(
    name="watch-agents",
    flow_run_name="look at every agent",
    persist_result=True,
    result_serializer="json",
)
def watch_agents(
    fresh_hours: Annotated[float, Field(gt=0)] = 6.0,
) -> dict[str, Any]:
    """Write the tables of agents and snapshots, and emit an event for each problem.

    It changes nothing. Automations (deployments/automations.py) wait for the events:
    `lobstertrap.agent.drifted` and `lobstertrap.agent.stale`.

    Args:
        fresh_hours: An agent whose last snapshot is older than this is called stale.
    """
    with watched():
        agents = survey_agents(fresh_hours)
        published = publish_agents(agents)
        return {"agents": published, "snapshots": publish_snapshots()}
