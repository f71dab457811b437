"""What a person or a machine may do to a migration in the middle of it."""

import signal

import pytest

from flows.launch_agent import launch_agent
from flows.migrate_agent import migrate_agent
from lobstertrap.errors import Refused
from tasks.step import load_config

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.s3,
    pytest.mark.usefixtures("prefect_api"),
]


@pytest.fixture
def migrating(world):
    """Start `lobstertrap migrate` and return it when the source is being stopped."""
    launch_agent(agent="tally", on="laptop")
    world.tally("laptop").say("before")
    world.suspend_tally()  # its stop takes ten seconds, so what follows is in time
    command = world.start("migrate", "tally", "--to", "server")
    world.wait_for("cutover")
    yield command
    command.kill()
    command.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_during_the_cutover_rolls_back(world, migrating, number):
    migrating.send_signal(number)
    _, said = migrating.communicate(timeout=120)

    assert migrating.returncode in (130, 143), said
    assert "Traceback" not in said
    assert world.running() == ["laptop"]
    assert world.record.migration is None
    assert world.record.operation is None
    assert world.tally("laptop").say("after") == 2


def test_a_killed_migration_is_finished_by_the_same_command(world, migrating):
    migrating.kill()
    migrating.wait()

    receipt = migrate_agent(agent="tally", to="server")

    assert receipt["digest_equal"]
    assert world.running() == ["server"]
    assert world.tally("server").say("after") == 2


def test_a_killed_migration_is_undone_by_abort(world, migrating):
    migrating.kill()
    migrating.wait()

    undone = migrate_agent(agent="tally", to="server", abort=True)

    assert undone["rolled_back_to"] == "laptop"
    assert world.running() == ["laptop"]


def test_a_second_operation_at_the_same_time_is_refused(world):
    launch_agent(agent="tally", on="laptop")

    with (
        load_config().hold("tally", "migrate"),
        pytest.raises(Refused, match="is held: migrate"),
    ):
        migrate_agent(agent="tally", to="server")

    assert world.running() == ["laptop"]
    assert world.record.migration is None
