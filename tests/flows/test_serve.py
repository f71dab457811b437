"""A real `lobstertrap serve`, used as a person uses it: with Prefect's own command."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from lobstertrap.cli.checkout import find_checkout
from lobstertrap.cli.prefect_server import isolated
from tests.fixtures.ports import free_port

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]
PREFECT = Path(sys.executable).with_name("prefect")


class Served:
    """A running `lobstertrap serve`, and what its user does."""

    def __init__(self, process: subprocess.Popen[str], api: str) -> None:
        self.process = process
        self.api = api

    def run(self, *arguments: str) -> str:
        """Run `prefect deployment run ...` in the checkout and return what it said."""
        done = subprocess.run(
            [PREFECT, "deployment", "run", *arguments],
            cwd=find_checkout(),
            env=os.environ | {"PREFECT_API_URL": self.api},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return done.stdout + done.stderr

    def start(self, deployment: str, *parameters: str) -> str:
        """Run `prefect deployment run ...` and return the run's id."""
        said = self.run(deployment, *(f"--param={one}" for one in parameters))
        found = re.search(r"UUID: (\S+)", said)
        assert found, said
        return found[1]

    def prefect(self, *arguments: str) -> str:
        """Run Prefect's own command and return what it said."""
        done = subprocess.run(
            [PREFECT, *arguments],
            env=os.environ | {"PREFECT_API_URL": self.api},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ask(self, deployment: str, **parameters: str) -> str:
        """Ask for a run as the UI does; return its id."""
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            run = client.create_flow_run_from_deployment(
                found.id, parameters=parameters
            )
            return str(run.id)

    def result(self, run_id: str) -> dict[str, Any]:
        """Return what the run's flow has returned, when it is completed."""
        ended = self.wait_for_state(run_id, 240)
        with self.client() as client:
            state = client.read_flow_run(run_id).state
        assert ended == "Completed", state.message
        return state.result()

    def client(self) -> SyncPrefectClient:
        """Return a client of its server."""
        return get_client(sync_client=True)

    def state(self, run_id: object) -> str:
        """Return the name of the run's state."""
        with self.client() as client:
            return str(client.read_flow_run(run_id).state.name)

    def wait_for_state(self, run_id: str, seconds: float = 120) -> str:
        """Return the name of the run's final state."""
        deadline = time.monotonic() + seconds
        with self.client() as client:
            while time.monotonic() < deadline:
                state = client.read_flow_run(run_id).state
                if state is not None and state.is_final():
                    return str(state.name)
                time.sleep(0.2)
        raise TimeoutError(run_id)


@pytest.fixture(scope="module")
def prefect_environment(tmp_path_factory) -> dict[str, str]:
    """Return the environment of a person without settings; no other server starts."""
    return isolated(os.environ, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def start_serve(
    shared_world, tmp_path_factory
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `lobstertrap serve`; all in one data directory."""
    data = tmp_path_factory.mktemp("serve")
    started = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = shared_world.start(
            *("serve", "--no-schedules", "--data-dir", str(data)), *arguments
        )
        started.append(command)
        return command

    yield start
    for command in started:
        command.send_signal(signal.SIGTERM)
        try:
            command.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            command.kill()
            command.communicate()
            raise


@pytest.fixture(scope="module")
def served(start_serve) -> Iterator[Served]:
    """Return a `lobstertrap serve` that is ready, for all tests here."""
    with ready(start_serve("--port", str(free_port()))) as made:
        yield made


@contextmanager
def ready(command: subprocess.Popen[str]) -> Iterator[Served]:
    said = ""
    while "Ctrl-C ends it" not in said:
        line = command.stdout.readline()
        assert line, command.stderr.read()
        said += line
    api = re.search(r"PREFECT_API_URL=(\S+)", said)[1]
    with temporary_settings(updates={PREFECT_API_URL: api}):
        yield Served(command, api)


@pytest.fixture
def on_laptop(shared_world, served):
    """Let tally run on `laptop`, whatever the test before did with it."""
    if shared_world.running() == ["server"]:
        run = served.ask("migrate-agent/default", to="laptop")
        assert served.wait_for_state(run) == "Completed"
    if shared_world.running() != ["laptop"]:
        run = served.ask("launch-agent/default", on="laptop")
        assert served.wait_for_state(run) == "Completed"
    return shared_world


def test_the_bare_command_migrates_an_agent(on_laptop, served):
    before = on_laptop.tally("laptop").say("hello")

    said = served.run("migrate-agent", "--watch")

    assert "Completed" in said
    on_laptop.settle_on("server")
    assert on_laptop.tally("server").say("and on") == before + 1

    said = served.run(
        *("migrate-agent/default", "--param", "agent=tally"),
        *("--param", "to=laptop", "--watch"),
    )
    assert "Completed" in said
    on_laptop.settle_on("laptop")


def test_a_round_by_schedule_leaves_an_agent_alone_that_is_being_moved(
    on_laptop, served
):
    with scheduled_often(served, "snapshot-agent/scheduled") as deployment:
        with on_laptop.config.hold("tally", "migrate"):
            during = next_round(served, deployment)
        after = next_round(served, deployment)

    assert (during.auto_scheduled, after.auto_scheduled) == (True, True)
    assert during.state.result()["agents"] == []
    assert [row["agent"] for row in after.state.result()["agents"]] == ["tally"]
    on_laptop.settle_on("laptop")


@contextmanager
def scheduled_often(served: Served, deployment: str) -> Iterator[object]:
    """Give a deployment a schedule of every 15 seconds; yields its id."""
    often = IntervalSchedule(
        interval=timedelta(seconds=15), anchor_date=datetime.now(UTC)
    )
    with served.client() as client:
        found = client.read_deployment_by_name(deployment)
        [made] = client.create_deployment_schedules(found.id, [(often, True)])
        yield found.id
        client.delete_deployment_schedule(found.id, made.id)
        at_work = filters.FlowRunFilter(
            deployment_id=filters.FlowRunFilterDeploymentId(any_=[found.id]),
            state={"name": {"any_": ["Pending", "Running"]}},
        )
        while client.read_flow_runs(flow_run_filter=at_work):
            time.sleep(0.5)


def next_round(served: Served, deployment: object) -> FlowRun:
    """Return the first run of a deployment that starts from now on, when it is done."""
    ours = filters.FlowRunFilter(
        deployment_id=filters.FlowRunFilterDeploymentId(any_=[deployment]),
        start_time=filters.FlowRunFilterStartTime(after_=datetime.now(UTC)),
        state={"name": {"any_": ["Completed", "Failed", "Crashed"]}},
    )
    with served.client() as client:
        while not (runs := client.read_flow_runs(flow_run_filter=ours)):
            time.sleep(0.5)
    assert runs[0].state.name == "Completed", runs[0].state.message
    return runs[0]


def test_a_cancel_in_the_ui_rolls_the_migration_back(on_laptop, served):
    on_laptop.suspend_tally()  # the cancel comes in time, however busy it is
    run = served.ask("migrate-agent/default")
    on_laptop.wait_for("cutover")

    with served.client() as client:
        client.set_flow_run_state(run, Cancelling())

    assert served.wait_for_state(run) == "Cancelled"
    on_laptop.settle_on("laptop")


def test_a_killed_flow_is_rolled_back_by_its_runner(on_laptop, served):
    on_laptop.suspend_tally()  # the kill comes before the launch, however busy it is
    run = served.ask("migrate-agent/default")
    on_laptop.wait_for("cutover")

    os.kill(on_laptop.record.operation.holder.pid, signal.SIGKILL)

    assert served.wait_for_state(run) == "Crashed"
    on_laptop.settle_on("laptop")

    served.prefect("flow-run", "retry", run)

    wait_until(lambda: served.state(run) == "Completed", 120)
    on_laptop.settle_on("server")


def test_a_retry_of_a_failed_migration_begins_again_and_succeeds(on_laptop, served):
    mend = on_laptop.break_tally_on("server")
    run = served.ask("migrate-agent/default", to="server")
    ended = served.wait_for_state(run, 300)
    mend()
    on_laptop.settle_on("laptop")

    served.prefect("flow-run", "retry", run)

    assert ended == "Failed"
    wait_until(lambda: served.state(run) == "Completed", 300)
    on_laptop.settle_on("server")


@pytest.mark.long  # tests/flows/test_team.py runs each of them in CI
def test_every_other_deployment_is_run_by_prefects_command(on_laptop, served):
    taken = served.result(served.start("snapshot-agent/scheduled"))
    seen = served.start("watch-agents/every-ten-minutes")
    kept = served.start("maintain-repository/weekly", "sample_percent=100")
    served.result(kept)
    to = ("agent=tally", "to=laptop")
    restored = served.result(served.start("restore-agent/default", *to))
    whole = ("source=laptop", "to=server")
    moved = served.result(served.start("migrate-fleet/default", *whole))

    assert [row["agent"] for row in taken["agents"]] == ["tally"]
    assert [row["where"] for row in served.result(seen)["agents"]] == ["laptop"]
    assert restored["phase"] == "running"
    assert moved["moved"] == 1
    on_laptop.settle_on("server")


def test_a_run_for_an_agent_that_is_gone_names_it(on_laptop, served):
    said = served.run("snapshot-agent/scheduled", "--param", "agent=ghost")

    assert "'ghost' is not one of ['tally']" in said
    assert "Traceback" not in said


def test_a_migration_waits_for_an_approval_and_holds_nothing_meanwhile(
    on_laptop, served
):
    run = served.ask("migrate-agent/default", to="server", approval=True)
    wait_until(lambda: served.state(run) == "Suspended", 120)
    on_laptop.settle_on("laptop")

    with served.client() as client:
        client.resume_flow_run(run, run_input={"approve": False, "comment": "not now"})

    assert served.wait_for_state(run) == "Failed"
    with served.client() as client:
        assert "not approved: not now" in client.read_flow_run(run).state.message
    on_laptop.settle_on("laptop")

    run = served.ask("migrate-agent/default", to="server", approval=True)
    wait_until(lambda: served.state(run) == "Suspended", 120)
    with served.client() as client:
        client.resume_flow_run(run, run_input={"approve": True, "comment": ""})

    assert served.wait_for_state(run) == "Completed"
    on_laptop.settle_on("server")


def test_a_second_serve_in_the_same_directory_is_refused(served, start_serve):
    second = start_serve("--port", str(free_port()))
    _, said = second.communicate(timeout=60)

    assert second.returncode == 3
    assert f"pid {served.process.pid}" in said
    assert "hint: " in said


def test_a_taken_port_is_named(start_serve, shared_world, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        command = shared_world.start(
            *("serve", "--data-dir", str(tmp_path), "--port", str(port))
        )
        _, said = command.communicate(timeout=60)

    assert command.returncode == 1
    assert f"127.0.0.1:{port} cannot be used" in said
    assert "Traceback" not in said


def test_ending_serve_rolls_back_what_it_runs(on_laptop, served):
    on_laptop.suspend_tally()  # it is ended in time, however busy it is
    served.ask("migrate-agent/default")
    on_laptop.wait_for("cutover")

    served.process.send_signal(signal.SIGINT)
    said, wrong = served.process.communicate(timeout=120)

    assert served.process.returncode == 0, wrong
    assert "stopping" in said
    on_laptop.settle_on("laptop")


def test_serve_ends_with_a_reason_when_its_server_dies(start_serve):
    with ready(start_serve("--port", str(free_port()))) as second:
        os.kill(server_of(second.process), signal.SIGKILL)

        _, said = second.process.communicate(timeout=60)

    assert second.process.returncode == 1
    assert "Prefect's server ended by itself" in said


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.2)


def server_of(process: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return next(
        int(child)
        for child in children.split()
        if b"server" in Path(f"/proc/{child}/cmdline").read_bytes()
    )
