"""The rows of `status`: what the record says against what the targets show."""

from dataclasses import replace

import pytest

from lobstertrap.agent import AgentSpec
from lobstertrap.cli.rows import agent_cells, target_cells
from lobstertrap.lease import AgentRecord, Holder, Journal, Operation
from lobstertrap.survey import Survey
from lobstertrap.targets.base import AgentStatus
from lobstertrap.whereabouts import agent_rows, target_rows

SPEC = AgentSpec.model_validate(
    {"name": "ada", "image": "x", "volumes": [{"name": "state", "path": "/state"}]}
)
RECORD = AgentRecord(
    agent="ada", epoch=7, target="laptop", state="running", snapshot="abcd"
)
RUNNING = AgentStatus(
    phase="running", epoch=7, healthy=True, addresses={"http": "127.0.0.1:1"}
)
STOPPED = AgentStatus(phase="stopped", epoch=7, detail="exit status 1")
ABSENT = AgentStatus(phase="absent")


def seen(record=RECORD, *, laptop=RUNNING, server=ABSENT, **more) -> Survey:
    shown = {"laptop": laptop, "server": server}
    return Survey(
        specs={"ada": SPEC},
        records={"ada": record},
        shown={name: {"ada": status} for name, status in shown.items() if status},
        taken={"ada": 1000.0},
        **more,
    )


def test_an_agent_that_is_as_it_should_be_has_one_row_without_notes():
    (row,) = agent_rows(seen())

    assert agent_cells(row, 1120.0) == [
        "ada",
        "laptop",
        "running",
        "healthy",
        "7",
        "2 min ago",
        "http 127.0.0.1:1",
        "",
    ]


@pytest.mark.parametrize(
    ("record", "laptop", "notes"),
    [
        (RECORD, STOPPED, ("should be running", "exit status 1")),
        (RECORD, ABSENT, ("should be running",)),
        (replace(RECORD, state="stopped"), RUNNING, ("should be stopped",)),
        (RECORD, replace(RUNNING, epoch=6), ("runs under epoch 6",)),
        (RECORD, replace(RUNNING, healthy=False, detail="503"), ("503",)),
        (replace(RECORD, state="stopped"), ABSENT, ()),
        (
            replace(RECORD, restoring="f" * 64),
            RUNNING,
            ("restore of ffffffffffff is unfinished",),
        ),
    ],
)
def test_drift_from_the_record_is_noted(record, laptop, notes):
    (row,) = agent_rows(seen(record, laptop=laptop))

    assert row.notes == notes


def test_an_agent_whose_home_is_silent_is_unknown():
    found = seen(laptop=None, bad_targets={"laptop": "no answer"})

    (row,) = agent_rows(found)

    assert (row.state, row.healthy) == ("unknown", None)
    assert row.notes == ("'laptop' does not answer",)
    assert not found.complete


def test_a_silent_target_is_a_row_with_the_reason():
    rows = target_rows(seen(laptop=None, bad_targets={"laptop": "connection refused"}))

    assert [row.name for row in rows if row.problem] == ["laptop"]
    assert target_cells(rows[-1])[-1] == "connection refused"


def test_a_second_copy_that_runs_has_a_row_that_says_so():
    _home, stray = agent_rows(seen(server=replace(RUNNING, epoch=6)))

    assert (stray.target, stray.state, stray.epoch) == ("server", "running", 6)
    assert stray.notes == ("must not run here: lobstertrap stop ada --on server",)
    assert stray.drift == stray.notes


def test_the_destination_of_an_open_migration_is_no_stray():
    journal = Journal(
        id="m",
        source="laptop",
        destination="server",
        step="launching",
        was_running=True,
        started=0.0,
    )

    home, other = agent_rows(seen(replace(RECORD, migration=journal), server=RUNNING))

    assert "migration from 'laptop' to 'server' is open (launching)" in home.notes
    assert other.notes == ("the migration's destination",)


def test_volumes_left_elsewhere_are_noted():
    (row,) = agent_rows(seen(server=replace(ABSENT, volumes=("state",))))

    assert row.notes == ("volumes also on server",)


def test_an_operation_says_who_holds_the_agent_and_whether_it_is_dead():
    dead = replace(Holder.this_process(), pid=2**22 + 1)
    operation = Operation(id="o", kind="migrate", holder=dead, since=0.0)

    (row,) = agent_rows(seen(replace(RECORD, operation=operation)))

    assert row.notes[0].startswith("migrate by ")
    assert row.notes[0].endswith("its process is gone")


def test_an_agent_that_was_never_launched_says_so():
    (row,) = agent_rows(seen(None, laptop=ABSENT))

    assert (row.state, row.target, row.epoch) == ("never launched", None, None)
    (held,) = agent_rows(seen(AgentRecord(agent="ada"), laptop=ABSENT))
    assert held.state == "never launched"


def test_an_agent_that_was_removed_still_shows_its_snapshot():
    removed = replace(RECORD, target=None, state="stopped")

    (row,) = agent_rows(seen(removed, laptop=ABSENT))

    assert (row.state, row.epoch, row.snapshot) == ("removed", 7, "abcd")
    assert row.snapshot_at == 1000.0


def test_without_the_store_what_targets_show_is_still_there():
    found = replace(seen(bad_store="connection refused"), records={}, taken={})

    home, copy = agent_rows(found)

    assert home.state == "unknown"
    assert (copy.target, copy.state, copy.notes) == ("laptop", "running", ())


def test_without_the_repository_the_records_still_count():
    (row,) = agent_rows(replace(seen(bad_store="the key is missing"), taken={}))

    assert (row.state, row.snapshot, row.snapshot_at) == ("running", "abcd", None)


def test_a_wrong_spec_is_a_row_and_no_abort():
    found = seen(bad_agents={"bob": "agents/bob/agent.yaml: name: is wrong"})

    _ada, bob = agent_rows(found)

    assert (bob.agent, bob.state) == ("bob", "unknown")
    assert bob.notes == ("agents/bob/agent.yaml: name: is wrong",)
