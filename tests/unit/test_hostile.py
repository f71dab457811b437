"""Names, volumes, records and specs made by an enemy: refused, or made harmless."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lobstertrap.agent import AgentSpec, load_agent
from lobstertrap.cli.app import run
from lobstertrap.config import load
from lobstertrap.errors import InvalidInput, LobsterTrapError, NotFound
from lobstertrap.lease import AgentRecord, record_key
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Repository
from lobstertrap.stores import open_store
from lobstertrap.stores.settings import StoreSettings
from lobstertrap.targets.mover_child import run_mover_child

ROOT = Path(__file__).parents[2]
KEY = "correct horse"
NAMES = [
    "\x1b]0;owned\x07\x1b[2J",  # sets the window's title, clears the screen
    "two\nlines: error: all is lost",
    "\rover",
    "\u202egnp.exe",  # right to left
    "--help",
    "-rf",
    "[red]markup[bold]",
    "tab\tand | pipe",
    "\u2028separator",
]
BYTES = [b"\xff\xfe\x9b31m", b"\x80\x07"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a project whose only agent has a volume full of hostile names."""
    shutil.copytree(ROOT / "agents/tally", tmp_path / "agents/tally")
    (tmp_path / "lobstertrap.toml").write_text(
        f'[store]\nurl = "file://{tmp_path}/store"\n'
        '[repository]\nkey = { source = "env", id = "REPOSITORY_KEY" }\n'
        '[targets.desk]\nkind = "host"\nroot = "desk"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOBSTERTRAP_CONFIG", raising=False)
    monkeypatch.setenv("REPOSITORY_KEY", KEY)
    monkeypatch.setenv("TALLY_TOKEN", "hunter2-hunter2")
    return tmp_path


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return what runs a command line and gives all that it printed."""

    def say(*arguments: str) -> str:
        run(arguments)
        out, err = capsys.readouterr()
        return out + err

    return say


def move(project: Path, command: str, volume: Path, **more: object) -> None:
    """Run the mover on `volume`."""
    store = StoreSettings(url=f"file://{project}/store")
    if command == "snapshot":
        try:
            Repository.open(open_store(store), SecretValue(KEY))
        except NotFound:
            Repository.create(open_store(store), SecretValue(KEY))
    more = {"consistency": "stopped", "tags": {}} | more
    request = {
        "version": 1,
        "command": command,
        "agent": "tally",
        "volumes": {"state": str(volume)},
        "local_owner": [os.getuid(), os.getgid()],
        "owner": [1000, 1000],
        "store": store.to_dict(),
        "key": KEY,
        "cache": False,
        "exclude": {},
        **more,
    }
    run_mover_child(json.dumps(request), lambda _: None)


def assert_harmless(text: str) -> None:
    """Check that nothing but printable characters and line ends was printed."""
    odd = {char for char in text if not (char.isprintable() or char == "\n")}
    assert odd == set()
    assert not any(line.startswith("lines: error:") for line in text.splitlines())


def test_hostile_file_names_are_harmless_in_everything_that_is_printed(project, say):
    volume = project / "volume"
    for name in [*map(os.fsencode, NAMES), *BYTES]:
        text = os.fsdecode(name)
        (volume / f"d-{text}").mkdir(parents=True)
        (volume / f"d-{text}" / text).write_text("x")
    move(project, "snapshot", volume)
    (volume / f"d-{os.fsdecode(BYTES[0])}" / "new").touch()
    shutil.rmtree(volume / f"d-{NAMES[0]}")
    (volume / NAMES[0]).symlink_to(NAMES[1])
    move(project, "snapshot", volume)

    for command in (
        ["ls", "latest", "-r"],
        ["ls", "latest", f"state/d-{NAMES[1]}"],
        ["ls", "latest", f"state/{NAMES[2]}/missing"],
        ["cat", "latest", f"state/{NAMES[0]}"],
        ["find", "*"],
        ["diff", "tally"],
        ["snapshots"],
        ["check"],
        ["history", "tally"],
        ["restore", "tally", "--into", "there", "--dry-run"],
    ):
        said = say(*command)
        assert said
        assert "unexpected" not in said
        assert "No such" not in said
        assert_harmless(said)


def test_a_hostile_argument_is_harmless_in_the_error(project, say):
    for name in NAMES:
        for command in (
            ["stop", "--", name],
            ["stop", "tally", f"--on={name}"],
            ["adopt", "--", name],
        ):
            assert_harmless(say(*command))
    together = "".join(NAMES)
    for command in ("status", "snapshots", "ls"):
        assert_harmless(say(command, "--", together))


def test_a_hostile_directory_among_the_agents_is_named_and_harmless(project, say):
    for name in (*NAMES, "..."):
        directory = project / "agents" / name.replace("/", "")
        directory.mkdir()
        shutil.copy(project / "agents/tally/agent.yaml", directory)

    said = say("status")

    assert_harmless(said)
    assert "tally" in said


@pytest.mark.parametrize(
    "name", ["../tally", "..", ".", "", "tally/../tally", "--help", "tally\0", "TALLY"]
)
def test_no_name_leads_out_of_the_agents_directory(project, name):
    config = load(project, os.environ)

    with pytest.raises(NotFound, match="no agent"):
        config.agent(name)


# Specs.


def spec_with(tmp_path: Path, **fields: object) -> AgentSpec:
    raw = {
        "name": "ada",
        "image": "ada:1",
        "volumes": [{"name": "state", "path": "/state"}],
        **fields,
    }
    path = tmp_path / "agent.yaml"
    path.write_text(yaml.safe_dump(raw))
    return load_agent(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "../x"},
        {"name": "--help"},
        {"name": "a.b"},
        {"name": "ada\n"},
        {"hostname": "$(reboot)"},
        {"volumes": [{"name": "../etc", "path": "/x"}]},
        {"volumes": [{"name": "state", "path": "/"}]},
        {"volumes": [{"name": "state", "path": "state"}]},
        {"volumes": [{"name": "state", "path": "/a/../../etc"}]},
        {"volumes": []},
        {"ports": [{"name": "x y", "port": 1}]},
        {"ports": [{"name": "x", "port": 65536}]},
        {"secrets": {"A B": {"source": "env", "id": "A"}}},
        {"secrets": {"A": "the value itself"}},
        {"env": {"A=B": "x"}},
        {"resources": {"pids": 0}},
        {"security": {"user": -1}},
        {"security": {"tmpfs": ["../tmp"]}},
        {"stop_timeout": "-1s"},
        {"unknown": True},
    ],
)
def test_a_hostile_spec_is_refused(tmp_path, fields):
    with pytest.raises(InvalidInput):
        spec_with(tmp_path, **fields)


@settings(max_examples=60, deadline=None)
@given(name=st.text(max_size=50))
def test_whatever_is_a_name_is_a_safe_one(name):
    raw = {"name": name, "image": "x", "volumes": [{"name": "s", "path": "/s"}]}
    try:
        spec = AgentSpec.model_validate(raw)
    except ValueError:
        return

    assert spec.name.isascii()
    assert not spec.name.startswith(("-", "."))
    assert spec.name.replace("-", "").isalnum()


def test_yaml_that_grows_or_nests_without_end_is_refused(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text("a: " + "[" * 2_000)

    with pytest.raises(InvalidInput):
        load_agent(path)


@settings(max_examples=60, deadline=None)
@given(
    place=st.floats(0, 1),
    cut=st.integers(0, 8),
    put=st.binary(max_size=8)
    | st.sampled_from(
        [b"&a", b"*a", b"!!", b"{", b"- ", b": ", b"\xff\xfe", b"9" * 99]
    ),
)
def test_whatever_a_spec_is_changed_to_it_is_one_or_our_error(
    tmp_path_factory, place, cut, put
):
    path = tmp_path_factory.getbasetemp() / "changed.yaml"
    text = (ROOT / "agents/openclaw/agent.yaml").read_bytes()
    start = int(place * len(text))
    path.write_bytes(text[:start] + put + text[start + cut :])
    tracemalloc.start()
    try:
        with suppress(LobsterTrapError):
            load_agent(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 20_000_000


def test_yaml_cannot_make_objects(tmp_path):
    path = tmp_path / "agent.yaml"
    path.write_text("name: !!python/object/apply:os.system ['touch hacked']")

    with pytest.raises(InvalidInput):
        load_agent(path)


# Volumes: what an agent left there must not lead a restore elsewhere.


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "file").write_text("precious")
    return directory


@pytest.mark.parametrize("planted", ["directory", "file", "dangling"])
def test_a_restore_never_writes_through_a_link(project, outside, planted):
    volume = project / "volume"
    (volume / "a").mkdir(parents=True)
    (volume / "a" / "file").write_text("ours")
    move(project, "snapshot", volume)
    found = Repository.open(
        open_store(StoreSettings(url=f"file://{project}/store")), SecretValue(KEY)
    ).find("latest", "tally")
    shutil.rmtree(volume)
    volume.mkdir()
    if planted == "directory":
        (volume / "a").symlink_to(outside)
    elif planted == "file":
        (volume / "a").mkdir()
        (volume / "a" / "file").symlink_to(outside / "file")
    else:
        (volume / "a").symlink_to(outside / "new")

    move(project, "restore", volume, snapshot=found.id, delete_extra=True)

    assert (volume / "a" / "file").read_text() == "ours"
    assert not (volume / "a").is_symlink()
    assert not (volume / "a" / "file").is_symlink()
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "precious"


def test_a_snapshot_reads_nothing_behind_a_link(project, outside, say):
    volume = project / "volume"
    volume.mkdir()
    (volume / "way-out").symlink_to(outside)
    os.mkfifo(volume / "pipe")

    move(project, "snapshot", volume)

    listed = say("ls", "latest", "-r")
    assert "way-out" in listed
    assert "state/way-out/file" not in listed


# The store: who may write to it can put anything there.


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"version": 1}',
        b'{"version": 1, "operation": 5, "migration": null, "agent": "tally"}',
        b'{"version": 1, "operation": null, "migration": {"id": 1}, "agent": "x"}',
        b'{"version": 1, "operation": null, "migration": null, "adopted": [1]}',
        b'{"version": 1, "operation": null, "migration": null, "odd": 1}',
        b'{"version": 99}',
        b"\xff\xfe",
        b'{"version": 1e999}',
    ],
)
def test_a_record_that_is_garbage_is_told_in_one_line(project, say, data):
    with pytest.raises(InvalidInput):
        AgentRecord.from_json(data)
    store = open_store(StoreSettings(url=f"file://{project}/store"))
    store.put(record_key("tally"), data)

    assert "tally" in say("status")


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_in_the_place_of_a_record_break_more_than_its_reading(data):
    with pytest.raises(InvalidInput):
        AgentRecord.from_json(data)
