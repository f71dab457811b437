"""What is taken over from the parent, and cut as if there had been none."""

from __future__ import annotations

from pathlib import Path

import pytest

from lobstertrap.repository import Repository, Snapshot, take_snapshot
from lobstertrap.repository.digest import ends_group
from lobstertrap.repository.parent import Parent
from lobstertrap.repository.tree import Group, read_groups
from lobstertrap.repository.tree_digest import tree_digest
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.trees import OWNERS, later, new_repository


@pytest.fixture
def repo() -> Repository:
    return new_repository(MemoryStore())


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    made = {name: tmp_path / name for name in ("state", "work")}
    for root in made.values():
        root.mkdir()
        for name in ("one", "three", "two"):
            (root / name).write_text(name)
    return made


def snap(repo: Repository, roots: dict[str, Path]) -> Snapshot:
    return take_snapshot(repo, agent="ada", roots=roots, owners=OWNERS, now=later)


def groups_of(repo: Repository, snapshot: Snapshot) -> list[Group]:
    reader = repo.blob_reader(repo.load_index())
    return list(read_groups(reader, snapshot.branches, stats=True))


def test_a_group_that_ended_with_the_tree_goes_on_when_the_tree_does(
    repo: Repository, roots: dict[str, Path]
) -> None:
    first = snap(repo, {"state": roots["state"]})
    (tail,) = groups_of(repo, first)
    assert not ends_group(tail.paths[-1], len(tail))

    grown = snap(repo, roots)

    assert grown.tree_digest == tree_digest(roots, OWNERS)
    assert groups_of(repo, grown)[0].paths[: len(tail) + 1] == [*tail.paths, b"work"]


def test_a_name_that_changed_is_not_taken_for_the_one_it_was(
    repo: Repository, roots: dict[str, Path]
) -> None:
    (group,) = groups_of(repo, snap(repo, {"state": roots["state"]}))
    marks = [mark for mark in group.marks if mark is not None]
    names = group.paths[-3:]
    renamed = [names[0], b"state/zwei", names[2]]  # where that leaves the ctime alone

    assert len(marks) == 3
    for paths, same in ((names, 3), (renamed, 1), ([b"state/eins", *names[1:]], 0)):
        parent = Parent(iter([group]))
        assert parent.match(group.paths[0])
        assert parent.same(paths, marks, 0) == ((group, 1, 1 + same) if same else None)
