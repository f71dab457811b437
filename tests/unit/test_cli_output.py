"""What the command line prints: text, tables, JSON, and progress without a terminal."""

import json
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
from datetime import UTC, datetime
from fcntl import ioctl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobstertrap import progress
from lobstertrap.cli import watch
from lobstertrap.cli.output import print_result, print_table
from lobstertrap.cli.text import age, duration, printable, printable_lines, size
from lobstertrap.job import Progress
from lobstertrap.redaction import SecretValue, redactor


@given(st.text())
def test_a_printable_text_is_one_line_of_harmless_characters(text):
    shown = printable(text)

    assert shown.isprintable()
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tally", "tally"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nb", "a\\nb"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("caf\u00e9 [bold]x", "caf\u00e9 [bold]x"),
        ("\udcff", "\\udcff"),
    ],
)
def test_characters_that_play_tricks_are_escaped(text, shown):
    assert printable(text) == shown


def test_the_lines_of_a_message_stay_lines():
    assert printable_lines("a\n\x1bb") == "a\n\\x1bb"


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (999_960, "1.0 MB"),
        (5e15, "5.0 PB"),
    ],
)
def test_sizes_are_readable(count, shown):
    assert size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0.0 s"),
        (1.24, "1.2 s"),
        (59, "59 s"),
        (60, "1 min"),
        (12_000, "3 h 20 min"),
    ],
)
def test_durations_are_readable(seconds, shown):
    assert duration(seconds) == shown


def test_a_clock_that_runs_ahead_is_no_negative_age():
    assert age(1000.0, 990.0) == "just now"


def test_a_result_is_one_object_or_readable_fields(capsys):
    began = datetime.fromtimestamp(0, tz=UTC).astimezone()
    result = {"agent": "tally", "bytes": 1500, "warnings": [], "x": {"seconds": 2}}
    result |= {"detail": "", "bytes_sent": 0, "ok": True, "started_at": 0.0}

    print_result(result, as_json=True)
    assert json.loads(capsys.readouterr().out) == result

    print_result(result, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "agent       tally",
        "bytes       1.5 KB",
        "x           2.0 s",
        "bytes sent  0 B",
        "ok          yes",
        f"started at  {began.isoformat(' ', 'seconds')}",
    ]


def test_a_table_in_a_pipe_is_plain_aligned_lines(capsys):
    print_table(["agent", "notes"], [["tally", "[red]x\x1b[0m"], ["a", ""]])

    out = capsys.readouterr().out
    assert out == "agent  notes\ntally  [red]x\\x1b[0m\na\n"


def on_a_terminal(code: str, *, columns: int) -> str:
    """Run `code` with stdout and stderr on a terminal and return what it drew."""
    parent, child = pty.openpty()
    ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environ = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    done = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=child,
        stdout=child,
        stderr=child,
        env=environ | {"TERM": "xterm"},
    )
    os.close(child)
    drawn = b""
    try:
        while piece := os.read(parent, 65536):
            drawn += piece
    except OSError:
        pass  # the child has closed its side
    finally:
        os.close(parent)
    assert done.wait(60) == 0, drawn
    return drawn.decode().replace("\r\n", "\n")


TABLE = (
    "from lobstertrap.cli.output import print_table; "
    "print_table(['agent', 'target', 'address'],"
    " [['tally', 'laptop', 'http 127.0.0.1:12345'], ['b', '-', '']])"
)


def test_a_table_on_a_wide_terminal_is_a_table():
    drawn = on_a_terminal(TABLE, columns=100)

    assert "tally  laptop  http 127.0.0.1:12345" in drawn


def test_a_table_that_does_not_fit_becomes_blocks():
    drawn = on_a_terminal(TABLE, columns=20)

    assert "agent    tally\ntarget   laptop\n" in drawn
    assert "\nagent    b\n" in drawn


BARS = """
from lobstertrap import progress
from lobstertrap.cli import watch
from lobstertrap.job import Progress
with watch.shown():
    for done in (10, 20, 30):
        report = Progress(phase="read", done_bytes=done * 10**6, total_bytes=3 * 10**7)
        progress.report("snapshot [red]tally on laptop", report)
"""


@pytest.mark.parametrize("columns", [100, 40])
def test_progress_on_a_terminal_is_a_bar(columns):
    drawn = on_a_terminal(BARS, columns=columns)

    assert "snapshot [red]tally" in drawn
    assert ("30.0/30.0 MB" in drawn) == (columns == 100)
    assert "100%" in drawn or columns == 100


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self):
        """Return what was set last."""
        return self.now


def test_progress_in_a_pipe_is_a_line_every_two_seconds(capsys):
    clock = Clock()
    lines = watch.Lines(clock)
    for tenth in range(60):
        clock.now = tenth / 10
        lines(
            "snapshot tally",
            Progress(phase="read", done_bytes=tenth * 10**5, total_bytes=10**7),
        )

    assert capsys.readouterr().err.splitlines() == [
        "snapshot tally: read 0 B of 10.0 MB (0%)",
        "snapshot tally: read 2.0 MB of 10.0 MB (20%), 1.0 MB/s, 8.0 s left",
        "snapshot tally: read 4.0 MB of 10.0 MB (40%), 1.0 MB/s, 6.0 s left",
    ]


def test_progress_goes_to_stderr_without_escape_codes(capsys):
    with watch.shown():
        progress.report("restore \x1b[31mtally", Progress(phase="write", done_bytes=5))

    out, err = capsys.readouterr()
    assert out == ""
    assert err == "restore \\x1b[31mtally: write 5 B\n"


def test_nobody_watches_after_the_block(capsys):
    with watch.shown():
        pass

    progress.report("late", Progress(phase="read"))
    logging.getLogger("lobstertrap.lease").info("late")

    assert capsys.readouterr().err == ""


def test_our_log_is_shown_without_secrets_and_without_doubled_progress(capsys):
    redactor.add(SecretValue("hunter2hunter2"))

    with watch.shown():
        logging.getLogger("lobstertrap.lease").info("waits for %s", "hunter2hunter2")
        logging.getLogger("lobstertrap.progress").info("read 1 MB")

    assert capsys.readouterr().err == "waits for **********\n"


def test_text_that_the_locale_cannot_print_is_escaped():
    code = (
        "from lobstertrap.cli.app import prepare_process; prepare_process(); "
        "print('\\u2192 \\udcff')"
    )
    environ = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}

    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, check=True
    )

    assert done.stdout == b"\\u2192 \\udcff\n"
