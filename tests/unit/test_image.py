"""The digest of a build context: equal for equal builds, different for any other."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile

import pytest

from lobstertrap.agent import AgentSpec, load_agent
from lobstertrap.errors import InvalidInput, NotFound
from lobstertrap.image import (
    context_digest,
    context_entries,
    image_tag,
    write_context,
)

SPEC = """
name: ada
build: {context: ., args: {COLOUR: red}}
volumes: [{name: state, path: /state}]
"""


@pytest.fixture
def agent(tmp_path) -> AgentSpec:
    (tmp_path / "agent.yaml").write_text(SPEC)
    (tmp_path / "Containerfile").write_text("FROM scratch\nCOPY . /\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "tool").write_text("#!/bin/sh\n")
    (tmp_path / "lib" / "latest").symlink_to("tool")
    return load_agent(tmp_path / "agent.yaml")


def change_content(root):
    (root / "lib" / "tool").write_text("#!/bin/bash\n")


def change_mode(root):
    (root / "lib" / "tool").chmod(0o755)


def change_name(root):
    (root / "lib" / "tool").rename(root / "lib" / "loot")


def change_link(root):
    (root / "lib" / "latest").unlink()
    (root / "lib" / "latest").symlink_to("lool")


def change_containerfile(root):
    (root / "Containerfile").write_text("FROM scratch\n")


def add_an_empty_directory(root):
    (root / "more").mkdir()


def turn_a_file_into_a_directory(root):
    (root / "lib" / "tool").unlink()
    (root / "lib" / "tool").mkdir()


@pytest.mark.parametrize(
    "change",
    [
        change_content,
        change_mode,
        change_name,
        change_link,
        change_containerfile,
        add_an_empty_directory,
        turn_a_file_into_a_directory,
    ],
)
def test_whatever_the_image_could_differ_in_changes_the_digest(agent, tmp_path, change):
    before = context_digest(agent)

    change(tmp_path)

    assert context_digest(agent) != before


def test_what_the_image_cannot_differ_in_does_not_change_the_digest(agent, tmp_path):
    before = context_digest(agent)

    os.utime(tmp_path / "lib" / "tool", (1, 1))
    (tmp_path / "lib" / "tool").chmod(0o640)
    (tmp_path / "lib").chmod(0o700)

    assert context_digest(agent) == before


def test_build_arguments_count_and_the_targets_win(agent):
    own = context_digest(agent)

    assert context_digest(agent, {"COLOUR": "red"}) == own
    assert context_digest(agent, {"COLOUR": "blue"}) != own
    assert context_digest(agent, {"SIZE": "1"}) != own


def test_the_tag_names_the_agent_and_the_digest(agent):
    tag = image_tag(agent)

    assert tag == f"localhost/lobstertrap/ada:{context_digest(agent)[:12]}"


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ("lib", {"Containerfile", "agent.yaml", ".containerignore"}),
        ("lib/*\n!lib/tool", {"lib", "lib/tool"}),
        ("**/tool", {"lib", "lib/latest"}),
        ("# lib\n\n/lib/latest", {"lib", "lib/tool"}),
        ("lib/t??[k-m]", {"lib", "lib/latest"}),
        ("*", {"Containerfile"}),
        ("*\n!lib/", {"Containerfile", "lib", "lib/tool", "lib/latest"}),
    ],
)
def test_containerignore_leaves_out_what_it_names(agent, tmp_path, rules, left):
    (tmp_path / ".containerignore").write_text(rules)
    every = {"Containerfile", "agent.yaml", ".containerignore"}

    names = {entry.name for entry in context_entries(agent)}

    assert names - every == left - every
    assert "Containerfile" in names


def test_what_is_ignored_does_not_change_the_digest(agent, tmp_path):
    (tmp_path / ".containerignore").write_text("notes\n")
    before = context_digest(agent)

    (tmp_path / "notes").write_text("x")

    assert context_digest(agent) == before


def test_the_archive_holds_the_entries_in_order_and_is_the_same_each_time(agent):
    first, second = io.BytesIO(), io.BytesIO()

    write_context(agent, first)
    write_context(agent, second)

    assert first.getvalue() == second.getvalue()
    first.seek(0)
    with tarfile.open(fileobj=first) as archive:
        names = archive.getnames()
        assert names == ["Containerfile", "agent.yaml", "lib", "lib/latest", "lib/tool"]
        assert archive.getmember("lib/latest").linkname == "tool"
        assert archive.extractfile("lib/tool").read() == b"#!/bin/sh\n"


def test_a_missing_containerfile_and_context_are_named(agent, tmp_path):
    (tmp_path / "Containerfile").unlink()
    elsewhere = agent.build.model_copy(update={"context": "nowhere"})
    spec = agent.model_copy(update={"build": elsewhere})

    with pytest.raises(NotFound, match="Containerfile"):
        context_digest(agent)
    with pytest.raises(NotFound, match="nowhere"):
        context_digest(spec)


def test_a_pipe_in_the_context_is_named_and_not_waited_for(agent, tmp_path):
    os.mkfifo(tmp_path / "lib" / "pipe")

    with pytest.raises(InvalidInput, match="lib/pipe"):
        context_digest(agent)


def test_a_file_that_may_not_be_read_is_named(agent, tmp_path):
    (tmp_path / "lib" / "tool").chmod(0)
    look = (
        "import sys, pathlib\n"
        "from lobstertrap.agent import load_agent\n"
        "from lobstertrap.errors import AccessDenied\n"
        "from lobstertrap.image import context_digest\n"
        "try: context_digest(load_agent(pathlib.Path(sys.argv[1])))\n"
        "except AccessDenied as error: print(error)\n"
    )
    # Root reads everything, unless it has given its capabilities away.
    humble = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]
    command = [sys.executable, "-c", look, tmp_path / "agent.yaml"]
    prefix = humble if os.geteuid() == 0 else []

    done = subprocess.run(
        [*prefix, *command], capture_output=True, text=True, check=True
    )

    assert "tool may not be read" in done.stdout


def test_an_agent_with_an_image_has_no_context(agent):
    spec = agent.model_copy(update={"build": None, "image": "localhost/x"})

    with pytest.raises(InvalidInput, match="ada"):
        context_digest(spec)
