"""The program that serves the flows as deployments: `lobstertrap serve` starts it.

It works in the checkout, talks to the server in PREFECT_API_URL, and writes one line to
the file descriptor in its argument once every deployment of prefect.yaml is served. A
second argument, `unscheduled`, leaves the schedules out.
SIGTERM cancels the flow runs in progress (a migration is then rolled back), waits until
they have ended, and ends it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import (
    ConcurrencyLimitConfig,
    State,
    StateType,
)
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.states import Cancelled, Crashed

_SERVED = (*("name", "flow_name", "entrypoint", "description", "tags", "parameters"),)
UNSCHEDULED = "unscheduled"
_LEFT = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_LOOK_EVERY = 10.0
"""Seconds between two looks for agents and targets that came or went."""


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    asyncio.run(_serve(int(sys.argv[1]), scheduled=UNSCHEDULED not in sys.argv))


async def _serve(ready: int, *, scheduled: bool) -> None:
    await _end_abandoned_runs()
    await _skip_missed_runs()
    runner = Runner(name="lobstertrap", pause_on_shutdown=False)
    await _deploy(runner, scheduled=scheduled)
    serving = asyncio.create_task(runner.start())
    while not (runner.started or serving.done()):  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.05)
    stop = _stop_signal()  # in the place of the runner's own, which waits for its runs
    os.write(ready, b"ready\n")
    os.close(ready)
    following = asyncio.create_task(_follow_names(runner, scheduled=scheduled))
    await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
    following.cancel()
    if not serving.done():
        await runner.astop()
    await serving


async def _deploy(runner: Runner, *, scheduled: bool) -> None:
    """Serve what prefect.yaml names; work pools and pull steps are for workers."""
    file = Path.cwd() / "prefect.yaml"
    entries: list[dict[str, Any]] = yaml.safe_load(file.read_text("utf-8"))[
        "deployments"
    ]
    async with get_client() as client:
        for entry in entries:
            deployment = RunnerDeployment.from_entrypoint(
                **{key: entry[key] for key in _SERVED if key in entry},
                schedules=await _schedules(client, entry, scheduled=scheduled),
                concurrency_limit=_limit(entry),
            )
            await runner.aadd_deployment(deployment)


async def _schedules(
    client: PrefectClient, entry: dict[str, Any], *, scheduled: bool
) -> list[DeploymentScheduleCreate]:
    """Return an entry's schedules, and what a person has made of them in the UI.

    One that was paused stays paused, and one that was added stays.
    """
    try:
        name = f"{entry['flow_name']}/{entry['name']}"
        made = (await client.read_deployment_by_name(name)).schedules
    except ObjectNotFound:
        made = []
    paused = {one.slug for one in made if not one.active}
    ours = [
        DeploymentScheduleCreate(
            schedule=CronSchedule(cron=one["cron"], timezone=one["timezone"]),
            active=one["slug"] not in paused,
            slug=one["slug"],
        )
        for one in entry.get("schedules", [])
    ]
    slugs = {one.slug for one in ours}
    added = [
        DeploymentScheduleCreate(
            schedule=one.schedule,
            active=one.active,
            slug=one.slug,
            parameters=one.parameters,
        )
        for one in made
        if one.slug not in slugs
    ]
    return (ours if scheduled else []) + added


def _limit(entry: dict[str, Any]) -> ConcurrencyLimitConfig | None:
    limit = entry.get("concurrency_limit")
    return ConcurrencyLimitConfig(**limit) if limit else None


async def _follow_names(runner: Runner, *, scheduled: bool) -> None:
    """Let the forms offer agents and targets that came after the start, too."""
    from tasks.names import known_names  # noqa: PLC0415 - cli and flows come first

    served = None
    while True:
        names = known_names("agents"), known_names("targets")
        if served is not None and names != served:
            await _deploy(runner, scheduled=scheduled)
        served = names
        await asyncio.sleep(_LOOK_EVERY)


def _stop_signal() -> asyncio.Task[Any]:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    return asyncio.create_task(asked.wait())


async def _end_abandoned_runs() -> None:
    """Mark runs that a killed `serve` left behind: the server is nobody else's."""
    left = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_LEFT))
    )
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=["lobstertrap"]))
    gone: State[Any] = Crashed(
        message="`lobstertrap serve` was killed; run it again to go on"
    )
    async with get_client() as client:
        for run in await client.read_flow_runs(
            flow_run_filter=left, deployment_filter=ours
        ):
            await client.set_flow_run_state(run.id, gone, force=True)


async def _skip_missed_runs() -> None:
    """Cancel what was due while nothing was served, but the last of each deployment.

    A laptop that was asleep for a day has one snapshot to take, not 24.
    """
    now: Any = datetime.now(UTC)  # what Prefect calls a DateTime
    due = FlowRunFilter(
        state=FlowRunFilterState(
            type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])
        ),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=now),
    )
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=["lobstertrap"]))
    latest = set[UUID | None]()
    async with get_client() as client:
        for run in await client.read_flow_runs(
            flow_run_filter=due,
            deployment_filter=ours,
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        ):
            if not run.auto_scheduled:
                continue
            if run.deployment_id in latest:
                missed: State[Any] = Cancelled(message="due while nothing was served")
                await client.set_flow_run_state(run.id, missed, force=True)
            latest.add(run.deployment_id)


if __name__ == "__main__":
    main()
