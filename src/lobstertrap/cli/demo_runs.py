"""A deployment run as a user would run it, followed step by step to its result."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lobstertrap.errors import Permanent, TimedOut

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

OnStep = Callable[[str, float], None]
"""Gets a task run's name and how many seconds it took."""

_LIMIT = 600.0
_LATE_STEPS = 3.0
"""Seconds for which Prefect's record of the last steps is waited for."""


def run_deployment(
    name: str, *, on_step: OnStep = lambda _name, _seconds: None, **parameters: Any
) -> dict[str, Any]:
    """Ask Prefect for a run, wait for it, and return what its flow returned.

    Raises `Permanent` with the run's own words when it does not complete.
    """
    # Prefect reads its settings when it is imported: not before the stage has set them.
    from prefect.client.orchestration import get_client  # noqa: PLC0415

    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(name)
        run = client.create_flow_run_from_deployment(
            deployment.id, parameters=parameters
        )
        done = _follow(client, run.id, on_step)
    state = done.state
    if state is None or not state.is_completed():
        words = state.message if state else "it never started"
        raise Permanent(
            f"the flow run '{done.name}' did not complete: {words}",
            hint="run `lobstertrap demo --keep` and read the run's log in the UI",
        )
    return dict(state.result())


def _follow(client: SyncPrefectClient, run_id: UUID, on_step: OnStep) -> FlowRun:
    """Report every step once it is over; return the run when it is final."""
    shown: set[UUID] = set()
    deadline = time.monotonic() + _LIMIT
    while True:
        run = client.read_flow_run(run_id)
        final = run.state is not None and run.state.is_final()
        running = _report_steps(client, run_id, shown, on_step)
        if final and (not running or time.monotonic() > deadline):
            return run
        if time.monotonic() > deadline:
            raise TimedOut(
                f"the flow run '{run.name}' takes longer than {_LIMIT:.0f} s"
            )
        if final:
            deadline = min(deadline, time.monotonic() + _LATE_STEPS)
        time.sleep(0.3)


def _report_steps(
    client: SyncPrefectClient, run_id: UUID, shown: set[UUID], on_step: OnStep
) -> bool:
    """Report the steps that have ended since; say whether one still runs."""
    from prefect.client.schemas.filters import (  # noqa: PLC0415
        FlowRunFilter,
        FlowRunFilterId,
    )

    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
    steps = client.read_task_runs(flow_run_filter=of_run)
    for step in sorted(steps, key=lambda step: str(step.start_time)):
        if step.end_time and step.id not in shown:
            shown.add(step.id)
            on_step(step.name, step.total_run_time.total_seconds())
    return any(step.end_time is None for step in steps)
