"""Flow: move every agent from one target to another."""

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
    flow_run_name=run_name("migrate all of {source} -> {to}"),
    persist_result=True,
    result_serializer="json",
)
def migrate_fleet(
    source: TargetName,
    to: TargetName,
    parallel: Annotated[int, Field(ge=1, le=32)] = 2,
) -> dict[str, Any]:
    """Move every agent that lives on a target to another one.

    Each migration is a run of its own, which commits or rolls back by itself. One that
    fails stops no other; this run then fails at the end, and names it.

    Args:
        source: The target to be emptied.
        to: The destination of all of them.
        parallel: How many agents are moved at the same time.
    """
    with watched():
        agents = find_fleet(source, to)
        outcomes = move_fleet(agents, to, parallel)
        return publish_fleet(source, to, outcomes)
