"""Flow: move the agents of a target, or of a label, to another target."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from tasks.find_fleet import find_fleet
from tasks.move_fleet import move_fleet
from tasks.names import TargetName
from tasks.publish_fleet import publish_fleet
from tasks.step import run_name, watched


@flow(
    name="migrate-fleet",
    flow_run_name=run_name(
        "migrate all {label} of {source} -> {to}", source="every target"
    ),
    persist_result=True,
    result_serializer="json",
)
def migrate_fleet(
    to: TargetName,
    source: TargetName | None = None,
    label: str | None = None,
    parallel: Annotated[int, Field(ge=1, le=32)] = 2,
) -> dict[str, Any]:
    """Move every agent of a target, or of a label, to another target.

    Each migration is a run of its own, which commits or rolls back by itself. One that
    fails stops no other; this run then fails at the end, and names it.

    Args:
        to: The destination of all of them.
        source: The target to be emptied; or, with a label, every other target.
        label: Only agents that have it among the `labels` of their agent.yaml.
        parallel: How many agents are moved at the same time.
    """
    with watched():
        agents = find_fleet(source, to, label)
        outcomes = move_fleet(agents, to, parallel)
        return publish_fleet(source or label or "", to, outcomes)
