"""The program that serves the flows as deployments: `lobstertrap serve` starts it.

It works in the checkout, talks to the server in PREFECT_API_URL, and writes one line to
the file descriptor in its argument once every deployment of prefect.yaml is served.
SIGTERM cancels the flow runs in progress (a migration is then rolled back), waits until
they have ended, and ends it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.states import Crashed

_SERVED = ("name", "flow_name", "entrypoint", "description", "tags", "parameters")
_LEFT = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    asyncio.run(_serve(int(sys.argv[1])))


async def _serve(ready: int) -> None:
    await _end_abandoned_runs()
    runner = Runner(name="lobstertrap", pause_on_shutdown=False)
    for deployment in _deployments(Path.cwd() / "prefect.yaml"):
        await runner.aadd_deployment(deployment)
    serving = asyncio.create_task(runner.start())
    while not (runner.started or serving.done()):  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.05)
    stop = _stop_signal()  # in the place of the runner's own, which waits for its runs
    os.write(ready, b"ready\n")
    os.close(ready)
    await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not serving.done():
        await runner.astop()
    await serving


def _deployments(file: Path) -> list[RunnerDeployment]:
    """Return what prefect.yaml names; work pools and pull steps are for workers."""
    entries: list[dict[str, Any]] = yaml.safe_load(file.read_text("utf-8"))[
        "deployments"
    ]
    return [
        RunnerDeployment.from_entrypoint(
            **{key: entry[key] for key in _SERVED if key in entry}
        )
        for entry in entries
    ]


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


if __name__ == "__main__":
    main()
