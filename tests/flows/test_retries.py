"""What Prefect does with a step that fails: only what may pass is tried again."""

import secrets
import time

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)

from lobstertrap.errors import Refused, Unavailable
from lobstertrap.redaction import REDACTED, SecretValue, redactor
from tasks.step import step, watched

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_api")]


class Failing:
    """A step that works when it is done for the third time, and counts."""

    def __init__(self, error):
        self.error = error
        self.done = 0

    def __call__(self) -> int:
        """Be done once more."""
        self.done += 1
        if self.done < 3:
            raise self.error
        return self.done

    def run_in_a_flow(self) -> int:
        """Let Prefect do it, without the pauses between."""
        task = step(task_run_name="fail")(self.__call__).with_options(
            retry_delay_seconds=0, retry_jitter_factor=0
        )

        @flow
        def only_this() -> int:
            return task()

        return only_this()


def test_a_transient_error_is_tried_again():
    failing = Failing(Unavailable("the store is away"))

    assert failing.run_in_a_flow() == 3


def test_a_permanent_error_is_not_tried_again():
    failing = Failing(Refused("two would run"))

    with pytest.raises(Refused):
        failing.run_in_a_flow()

    assert failing.done == 1


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_not_tried_again(interrupt):
    failing = Failing(interrupt())

    with pytest.raises(interrupt):
        failing.run_in_a_flow()

    assert failing.done == 1


def test_what_prefect_keeps_of_a_failure_has_no_secret_in_it():
    value = f"canary-{secrets.token_hex(12)}"
    redactor.add(SecretValue(value))

    def fail() -> None:
        raise ValueError(f"an engine said {value}")

    @flow
    def only_this() -> None:
        with watched():
            step(task_run_name="fail")(fail)()

    state = only_this(return_state=True)
    run_id = state.state_details.flow_run_id
    kept, deadline = "", time.monotonic() + 120
    while "Traceback" not in kept and time.monotonic() < deadline:
        kept = _kept_of(run_id)  # the log is sent in the background
        time.sleep(0.1)

    assert state.is_failed()
    assert f"an engine said {REDACTED}" in state.message
    assert f"an engine said {REDACTED}" in kept
    assert "Traceback" in kept
    assert value not in kept


def _kept_of(run_id):
    """Return the lines of a run's log and why its tasks failed, as Prefect has them."""
    with get_client(sync_client=True) as client:
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
        lines = [line.message for line in client.read_logs(wanted)]
        runs = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
        tasks = client.read_task_runs(flow_run_filter=runs)
    return "\n".join([*lines, *(str(task.state.message) for task in tasks)])
