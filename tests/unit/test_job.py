"""What a mover answers, line by line, and what becomes of who reads it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lobstertrap.errors import LeaseLost, LobsterTrapError, Refused, Unavailable
from lobstertrap.job import (
    Progress,
    error_line,
    progress_line,
    read_events,
    result_line,
)


class Connection:
    """Lines that come from somewhere; it notices when nobody reads them any more."""

    closed = False

    def lines(self, *lines: str) -> Iterator[str]:
        """Yield them."""
        try:
            yield from lines
        finally:
            self.closed = True


def give_up(_: Progress) -> None:
    raise LeaseLost("somebody else holds it")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (error_line(Refused("no")), Refused),
        (progress_line(Progress(phase="read")), LeaseLost),
    ],
)
def test_a_connection_is_closed_when_its_reader_stops_with_an_error(
    line: str, error: type[LobsterTrapError]
) -> None:
    connection = Connection()
    lines = connection.lines(line, "never read")  # held: nothing else closes it

    with pytest.raises(error):
        read_events(lines, give_up)

    assert connection.closed


def test_a_connection_is_closed_when_its_reader_has_the_result() -> None:
    connection = Connection()
    lines = connection.lines("noise", result_line({"files": 1}), "never read")

    assert read_events(lines, give_up) == {"files": 1}

    assert connection.closed
    assert list(lines) == []


def test_lines_that_end_without_a_result_show_what_was_said_last() -> None:
    with pytest.raises(Unavailable, match=r"without a result: out of memory"):
        read_events(["out of memory\n"], give_up)
