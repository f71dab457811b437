"""A person's approval of a plan: the run is suspended, and shows a form with it.

Nothing is open and nobody holds the agent meanwhile: the process ends, and when the
form is sent a new one checks the plan again and goes on.
"""

from __future__ import annotations

from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from lobstertrap.errors import InvalidInput, Refused
from lobstertrap.migration import Plan
from tasks.step import log

PATIENCE = 24 * 3600
"""Seconds after which a run that nobody has answered fails; nothing was changed."""


class Approval(RunInput):
    """What a person says of a plan."""

    approve: bool = Field(default=False, description="Move the agent now.")
    comment: str = Field(default="", max_length=500, description="Kept in the log.")


def ask_approval(plan: Plan) -> None:
    """Return when somebody has approved of the plan; raises `Refused` if not."""
    form = Approval.with_initial_data(description=describe(plan))
    try:
        answer = suspend_flow_run(wait_for_input=form, timeout=PATIENCE)
    except RuntimeError as error:
        raise InvalidInput(
            f"this run cannot wait for an approval: {error}",
            hint="only a deployment's run can: prefect deployment run "
            "migrate-agent/default --param approval=true",
        ) from error
    said = f": {answer.comment}" if answer.comment else ""
    if not answer.approve:
        raise Refused(
            f"moving '{plan.agent}' to '{plan.destination}' was not approved{said}",
            hint="nothing was changed",
        )
    log.info("approved%s", said)


def describe(plan: Plan) -> str:
    """Return the plan as Markdown."""
    source, destination = plan.kinds
    runs = "It is stopped only for the last difference." if plan.was_running else ""
    lines = [
        f"## Move {plan.agent}?",
        f"`{plan.source}` ({source}) → `{plan.destination}` ({destination})",
        runs or "It does not run, and will not run there either.",
        *(f"- {note}" for note in dict.fromkeys(plan.notes)),
    ]
    return "\n\n".join(lines)
