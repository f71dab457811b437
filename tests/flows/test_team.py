"""A team's layout on one machine: Postgres, two pools, and a worker beside the data."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.events import Event
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.automations import remove_others
from lobstertrap.cli.prefect_server import PrefectServer
from tests.fixtures.postgres import postgres
from tests.fixtures.team import Team, wait_until

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]
TEAM = "deployments/team/prefect.yaml"
PATIENT = "stop_timeout: 600s"
"""For tally, so that a test has time for what it does while tally is being stopped."""


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[PrefectServer]:
    """Return a server that keeps everything in Postgres."""
    directory = tmp_path_factory.mktemp("prefect")
    with postgres() as database:
        own = {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
        }
        with PrefectServer(directory, settings=own) as made:
            yield made


@pytest.fixture(scope="module")
def prefect_environment(server) -> dict[str, str]:
    """Return the environment of a program that uses this server, not the session's."""
    return server.client_environment(os.environ)


@pytest.fixture(scope="module")
def team(server, shared_world, tmp_path_factory) -> Iterator[Team]:
    """Return a team with two pools and every deployment, whose workers come later."""
    made = Team(
        environ=server.client_environment(os.environ),
        directory=tmp_path_factory.mktemp("team"),
    )
    spec = shared_world.directory / "agents" / "tally" / "agent.yaml"
    text = spec.read_text("utf-8")
    assert "stop_timeout: 10s" in text
    spec.write_text(text.replace("stop_timeout: 10s", PATIENT), "utf-8")
    with temporary_settings(updates={PREFECT_API_URL: server.api}):
        for pool in ("laptop", "cluster"):
            made.prefect("work-pool", "create", pool, "--type", "process")
        made.prefect("deploy", "--prefect-file", TEAM, "--all")
        made.silence()
        yield made
        made.end()


@pytest.fixture(scope="module")
def both(shared_world) -> Path:
    """Return the lobstertrap.toml of the worker that reaches both targets."""
    return shared_world.directory / "lobstertrap.toml"


@pytest.fixture
def world(shared_world, team, both):
    """Return the world with tally running somewhere, and a worker for both targets."""
    team.worker("laptop", both)
    if not shared_world.running():
        team.run("launch-agent/laptop", agent="tally", on="laptop")
    return shared_world


def other_than(home: str) -> str:
    return "server" if home == "laptop" else "laptop"


@contextmanager
def cutover(world, team) -> Iterator[tuple[str, str, str]]:
    """Begin a migration that waits for tally's stop; yields the run, from, and to.

    Tally stops at the end of the block, and after its `stop_timeout` by force.
    """
    (home,) = world.running()
    to = other_than(home)
    tally = world.suspend_tally()
    try:
        run = team.ask("migrate-agent/laptop", agent="tally", to=to)
        world.wait_for("cutover", 240)
        yield run, home, to
    finally:
        with suppress(ProcessLookupError):
            os.kill(tally, signal.SIGCONT)


def gone(pid: int) -> bool:
    """Say whether a process has ended, whoever still has to be told."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def test_a_team_with_postgres_runs_every_deployment_where_its_targets_are(
    shared_world, team, both
):
    world = shared_world
    one = world.directory / "away.toml"
    store = both.read_text("utf-8").partition("[targets.laptop]")[0]
    one.write_text(f'{store}[targets.server]\nkind = "host"\nroot = "server"\n')
    made = team.deployments()
    team.prefect("deploy", "--prefect-file", TEAM, "--all")
    team.silence()

    team.worker("laptop", both)
    team.worker("cluster", one)
    team.run("launch-agent/laptop", agent="tally", on="laptop")
    world.tally("laptop").say("hello")
    here = team.result("snapshot-agent/laptop")
    nothing = team.result("snapshot-agent/cluster")
    team.run("migrate-agent/laptop", agent="tally", to="server")
    there = team.result("snapshot-agent/cluster")
    seen = team.result("watch-agents/cluster")
    team.result("restore-agent/cluster", agent="tally", to="server")
    kept = team.result("maintain-repository/cluster", sample_percent=100)
    back = team.result("migrate-fleet/laptop", source="server", to="laptop")

    assert team.deployments() == made
    assert len(made) == 12
    assert [row["target"] for row in here["agents"]] == ["laptop"]
    assert nothing["agents"] == []
    assert [row["target"] for row in there["agents"]] == ["server"]
    assert [row["where"] for row in seen["agents"]] == ["server"]
    assert kept["checked"]["ok"]
    assert [row["agent"] for row in back["agents"]] == ["tally"]
    assert world.running() == ["laptop"]
    assert world.tally("laptop").say("and on") == 2


def test_a_cancelled_migration_is_rolled_back_by_its_worker(world, team):
    with cutover(world, team) as (run, home, _):
        team.cancel(run)
        world.wait_for("rolling-back", 120)

    assert team.ended(run) == "Cancelled"
    world.settle_on(home)


def test_a_migration_whose_worker_is_stopped_is_finished_by_the_next_run(
    world, team, both
):
    with cutover(world, team) as (run, _, to):
        flow = world.record.operation.holder.pid
        worker = team.worker("laptop", both)
        worker.process.send_signal(signal.SIGTERM)
        worker.process.wait(120)
        wait_until(lambda: gone(flow))
    left = team.state(run)

    team.worker("laptop", both)
    team.result("migrate-agent/laptop", agent="tally", to=to)

    assert left == "Running"  # until the automation below ends it
    world.settle_on(to)


def test_a_run_whose_machine_died_becomes_crashed_and_its_retry_finishes_it(
    world, team, both
):
    with cutover(world, team) as (run, _, to):
        flow = world.record.operation.holder.pid
        team.worker("laptop", both).kill()
        os.kill(flow, signal.SIGKILL)
        wait_until(lambda: gone(flow))
    assert team.state(run) == "Running"

    with dead_runs_ended(team, run):
        assert team.ended(run) == "Crashed"
    team.worker("laptop", both)
    team.prefect("flow-run", "retry", run)

    wait_until(lambda: team.state(run) == "Completed")
    world.settle_on(to)


def test_a_failed_migration_is_retried_by_prefects_command(world, team):
    (home,) = world.running()
    to = other_than(home)
    mend = world.break_tally_on(to)
    run = team.ask("migrate-agent/laptop", agent="tally", to=to)
    ended = team.ended(run)
    mend()
    world.settle_on(home)

    team.prefect("flow-run", "retry", run)

    assert ended == "Failed"
    wait_until(lambda: team.state(run) == "Completed")
    world.settle_on(to)


@contextmanager
def dead_runs_ended(team: Team, run: str) -> Iterator[None]:
    """Let the shipped automation end runs that are silent for twelve seconds.

    The run's last sign of life is sent now: what the automation has not seen alive it
    does not miss.
    """
    with get_client(sync_client=True) as client:
        try:
            script = (sys.executable, "deployments/automations.py")
            team.command(*script, "--dead-after", "0.2")
            alive = Event(
                event="prefect.flow-run.heartbeat",
                resource={"prefect.resource.id": f"prefect.flow-run.{run}"},
            )
            client.request("POST", "/events", json=[alive.model_dump(mode="json")])
            yield
        finally:
            list(remove_others(client, set()))
