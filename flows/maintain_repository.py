"""Flow: look after the repository, so that it stays small and can be restored."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from tasks.check_repository import check_repository
from tasks.forget_snapshots import forget_snapshots
from tasks.prune_repository import prune_repository
from tasks.publish_upkeep import publish_upkeep
from tasks.step import watched

Count = Annotated[int, Field(ge=0)]


@flow(
    name="maintain-repository",
    flow_run_name="look after the repository",
    persist_result=True,
    result_serializer="json",
)
def maintain_repository(
    *,
    keep_hourly: Count = 24,
    keep_daily: Count = 7,
    keep_weekly: Count = 5,
    keep_monthly: Count = 12,
    grace_hours: Annotated[int, Field(ge=1)] = 24,
    sample_percent: Annotated[float, Field(ge=0, le=100)] = 5.0,
) -> dict[str, Any]:
    """Forget old snapshots, free their space, and prove that the others are whole.

    An agent's newest snapshot, its last complete one and those in use always stay.

    Args:
        keep_hourly: Of how many of the latest hours the last snapshot is kept.
        keep_daily: Of how many days.
        keep_weekly: Of how many weeks.
        keep_monthly: Of how many months.
        grace_hours: How long what nothing needs any more is kept before it is deleted.
        sample_percent: How much of the data is read back, chosen by chance.
    """
    rules = {
        "hourly": keep_hourly,
        "daily": keep_daily,
        "weekly": keep_weekly,
        "monthly": keep_monthly,
    }
    with watched():
        forgotten = forget_snapshots(rules)
        freed = prune_repository(grace_hours)
        checked = check_repository(sample_percent)
        return publish_upkeep(forgotten, freed, checked)
