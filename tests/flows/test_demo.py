"""`lobstertrap demo` as a person runs it, interrupts it, and kills it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lobstertrap.cli.demo_traces import claim, processes, sweep
from lobstertrap.errors import Refused

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]


def start_demo(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    lobstertrap = Path(sys.executable).with_name("lobstertrap")
    command = [str(lobstertrap), "demo", "--directory", str(directory), "--no-keep"]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def read_until(demo: subprocess.Popen[str], words: str) -> None:
    for line in demo.stdout:
        if words in line:
            return
    pytest.fail(f"the demo ended without {words!r}: {demo.stderr.read()}")


def test_an_interrupted_demo_leaves_nothing(tmp_path):
    directory = tmp_path / "demo"
    demo = start_demo(directory, "--targets", "host")
    read_until(demo, "pre-copy")

    demo.send_signal(signal.SIGINT)
    _, said = demo.communicate(timeout=120)

    assert demo.returncode == 130, said
    assert "Traceback" not in said
    assert processes(directory) == {}
    assert not directory.exists()


def test_a_demo_after_a_killed_one_proves_everything(tmp_path):
    directory = tmp_path / "demo"
    killed = start_demo(directory, "--targets", "host")
    read_until(killed, "pre-copy")
    killed.kill()
    killed.communicate()
    left = processes(directory)
    assert left

    demo = start_demo(directory, "--targets", "host", "--json")
    said, wrong = demo.communicate(timeout=400)

    assert demo.returncode == 0, wrong
    report = json.loads(said.splitlines()[-1])
    assert report["ok"]
    assert report["digest_equal"]
    assert report["left_behind"] == []
    assert report["kinds"] == ["host", "host"]
    assert report["messages_after"] > report["messages_before"] >= 3
    assert report["bytes_uploaded"] > 0
    assert report["bytes_restored"] > 0
    assert 0 < report["downtime_seconds"] < report["seconds"]
    assert not directory.exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)


@pytest.mark.long  # the pairs of engines are tested without it
@pytest.mark.podman
def test_the_demo_plays_between_two_podman_engines(tmp_path, podman_laptop):
    directory = tmp_path / "demo"
    demo = start_demo(directory, "--targets", "podman", "--json")
    said, wrong = demo.communicate(timeout=500)

    assert demo.returncode == 0, wrong
    report = json.loads(said.splitlines()[-1])
    assert report["ok"]
    assert report["kinds"] == ["podman", "podman"]


def test_a_directory_that_is_not_a_demos_is_never_swept(tmp_path):
    (tmp_path / "a letter").write_text("dear")

    with pytest.raises(Refused, match="not a demo's"), claim(tmp_path):
        pytest.fail("claimed")

    assert (tmp_path / "a letter").read_text() == "dear"


def test_a_second_demo_in_the_same_directory_is_refused(tmp_path):
    with claim(tmp_path), pytest.raises(Refused, match="another demo"), claim(tmp_path):
        pytest.fail("claimed twice")


def test_a_sweep_ends_what_bears_the_demos_mark(tmp_path):
    with claim(tmp_path / "demo"):
        sleeper = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"],
            env=os.environ | {"STATE": f"{tmp_path}/demo/state"},
        )

        sweep(tmp_path / "demo", keep_lock=False)

    assert sleeper.wait(10) == -signal.SIGKILL
    assert not (tmp_path / "demo").exists()
