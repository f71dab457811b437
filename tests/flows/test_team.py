"""A team's layout on one machine: Postgres, two pools, and a worker beside the data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from lobstertrap.cli.checkout import find_checkout
from lobstertrap.cli.prefect_server import PrefectServer
from lobstertrap.tied import tied
from tests.fixtures.postgres import postgres

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]
PREFECT = Path(sys.executable).with_name("prefect")
TEAM = "deployments/team/prefect.yaml"
SECONDS = 240


class Team:
    """A server, and what a member does with Prefect's own command."""

    def __init__(self, server: PrefectServer, directory: Path) -> None:
        self._environ = server.client_environment(os.environ)
        self._directory = directory

    def prefect(self, *arguments: str) -> str:
        """Run `prefect` in the checkout and return what it said."""
        done = subprocess.run(
            [PREFECT, "--no-prompt", *arguments],
            cwd=find_checkout(),
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, deployment: str, **parameters: str) -> None:
        """Run a deployment by Prefect's command and wait until it is completed."""
        asked = [f"--param={name}={value}" for name, value in parameters.items()]
        said = self.prefect("deployment", "run", deployment, *asked, "--watch")
        assert "Completed" in said, said

    def result(self, deployment: str, **parameters: Any) -> dict[str, Any]:
        """Run a deployment as the UI does; return what its flow has returned."""
        with get_client(sync_client=True) as client:
            found = client.read_deployment_by_name(deployment)
            run = client.create_flow_run_from_deployment(
                found.id, parameters=parameters
            )
            deadline = time.monotonic() + SECONDS
            while not (state := client.read_flow_run(run.id).state).is_final():
                assert time.monotonic() < deadline, (deployment, state)
                time.sleep(0.2)
        assert state.is_completed(), (deployment, state.message)
        return state.result()

    def deployments(self) -> dict[str, tuple[object, int]]:
        """Return what the server has: of each its id and how many schedules."""
        with get_client(sync_client=True) as client:
            return {
                f"{one.name} {one.entrypoint}": (one.id, len(one.schedules))
                for one in client.read_deployments()
            }

    @contextmanager
    def worker(self, pool: str, config: Path) -> Iterator[Path]:
        """Run a worker of the pool with its own lobstertrap.toml; yields its log."""
        log, elsewhere = self._directory / f"{pool}.log", self._directory / pool
        elsewhere.mkdir()
        own = {"LOBSTERTRAP_CONFIG": str(config), "PREFECT_WORKER_QUERY_SECONDS": "1"}
        with log.open("w") as output:
            worker = subprocess.Popen(
                tied([str(PREFECT), "worker", "start", "-p", pool, "-n", pool]),
                cwd=elsewhere,
                env=self._environ | own,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + SECONDS
            while "started!" not in log.read_text():
                assert worker.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield log
        finally:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[PrefectServer]:
    """Return a server that keeps everything in Postgres."""
    directory = tmp_path_factory.mktemp("prefect")
    with postgres() as database:
        own = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database}
        with PrefectServer(directory, settings=own) as made:
            yield made


@pytest.fixture(scope="module")
def prefect_environment(server) -> dict[str, str]:
    """Return the environment of a program that uses this server, not the session's."""
    return server.client_environment(os.environ)


@pytest.fixture
def team(server, tmp_path) -> Iterator[Team]:
    """Return a team whose pools are empty."""
    with temporary_settings(updates={PREFECT_API_URL: server.api}):
        yield Team(server, tmp_path)


def test_a_team_with_postgres_runs_every_deployment_where_its_targets_are(world, team):
    both = world.directory / "lobstertrap.toml"
    one = world.directory / "away.toml"
    store = both.read_text("utf-8").partition("[targets.laptop]")[0]
    one.write_text(f'{store}[targets.server]\nkind = "host"\nroot = "server"\n')
    for pool in ("laptop", "cluster"):
        team.prefect("work-pool", "create", pool, "--type", "process")
    team.prefect("deploy", "--prefect-file", TEAM, "--all")
    made = team.deployments()
    team.prefect("deploy", "--prefect-file", TEAM, "--all")

    with team.worker("laptop", both), team.worker("cluster", one):
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
