"""Flow: move an agent to another target, live, and back again if that fails."""

from __future__ import annotations

import time
from typing import Any

from prefect import flow

from tasks.after_a_kill import roll_back_cancelled, roll_back_crashed
from tasks.ask_approval import ask_approval
from tasks.await_destination import await_destination
from tasks.begin_migration import begin_migration
from tasks.check_plan import check_plan
from tasks.choices import only_agent, only_other_target
from tasks.commit_migration import commit_migration
from tasks.launch_destination import launch_destination
from tasks.names import AgentName, TargetName
from tasks.precopy_state import precopy_state
from tasks.publish_receipt import publish_receipt
from tasks.retire_source import retire_source
from tasks.roll_back import roll_back
from tasks.stage_destination import stage_destination
from tasks.step import hold, run_name
from tasks.stop_source import stop_source
from tasks.transfer_state import transfer_state


@flow(
    name="migrate-agent",
    flow_run_name=run_name("migrate {agent} -> {to}"),
    persist_result=True,
    result_serializer="json",
    on_cancellation=[roll_back_cancelled],
    on_crashed=[roll_back_crashed],
)
def migrate_agent(
    agent: AgentName | None = None,
    to: TargetName | None = None,
    abort: bool = False,
    approval: bool = False,
) -> dict[str, Any]:
    """Move an agent with its state to another target.

    The source runs while most of its state is copied; it is stopped only for the rest.
    Any failure, or a cancel, before the commit starts it again where it was.

    Args:
        agent: The agent's name; may be left out when there is only one.
        to: The destination's name; may be left out when there is only one other target.
        abort: Roll an unfinished migration back instead of continuing it.
        approval: Show the plan and wait, suspended, until somebody approves of it.
    """
    agent = agent or only_agent()
    with hold(agent, "migrate") as operation:
        if abort:
            return {"agent": agent, "rolled_back_to": roll_back(agent, operation)}
        return _migrate(
            agent, operation, to or only_other_target(agent), approval=approval
        )


def _migrate(agent: str, operation: str, to: str, *, approval: bool) -> dict[str, Any]:
    began = time.monotonic()
    plan = check_plan(agent, operation, to)
    if plan.resumes == "rolling-back":
        roll_back(agent, operation)
        plan = check_plan(agent, operation, to)
    if approval and plan.resumes is None:  # one that was begun has been approved
        ask_approval(plan)
    # Copies, or Prefect would draw an edge from the plan to every step that names them.
    source, to = "".join(plan.source), "".join(to)
    downtime = 0.0
    try:
        begin_migration(agent, operation, plan)
        image = stage_destination(agent, operation, to)
        copied = precopy_state(agent, operation, source, to)
        stop_source(agent, operation, source)
        moved = transfer_state(agent, operation, source, to)
        if plan.was_running:
            launch_destination(agent, operation, to)
            downtime = await_destination(agent, operation, to)
        epoch = commit_migration(agent, operation, to)
    except BaseException:  # a cancel is one too; the rollback says where things are
        roll_back(agent, operation)
        raise
    retire_source(agent, operation, source)
    return publish_receipt(
        plan,
        image=image,
        epoch=epoch,
        copied=copied,
        moved=moved,
        downtime_seconds=round(downtime, 3),
        seconds=round(time.monotonic() - began, 3),
    )
