"""What Prefect does with a step that fails: only what may pass is tried again."""

import pytest
from prefect import flow

from lobstertrap.errors import Refused, Unavailable
from tasks.step import step

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
