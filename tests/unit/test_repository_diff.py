"""What changed between two snapshots, or since a snapshot."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from lobstertrap.errors import NotFound
from lobstertrap.repository import (
    Owners,
    Repository,
    Snapshot,
    restore,
    take_snapshot,
)
from lobstertrap.repository.browse import Tree
from lobstertrap.repository.diff import (
    Change,
    compare,
    diff,
    diff_directories,
    plan_restore,
)
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.trees import (
    describe,
    later,
    make_everything,
    new_repository,
    write_tree,
)

ME = (os.getuid(), os.getgid())
OWNERS = Owners(local=ME, canonical=ME)


@pytest.fixture
def repo() -> Repository:
    return new_repository(MemoryStore())


def snap(repo: Repository, root: Path) -> Snapshot:
    return take_snapshot(
        repo, agent="ada", roots={"state": root}, owners=OWNERS, now=later
    )


def summary(changes: list[Change]) -> dict[str, str]:
    return {
        os.fsdecode(change.path): " ".join((change.kind, *change.what))
        for change in changes
    }


def change_everything(root: Path) -> dict[str, str]:
    """Change a tree in every way and return what a diff has to say."""
    (root / "small.txt").write_bytes(b"HELLO\n")
    (root / "new").write_text("new")
    (root / "secret").unlink()
    (root / "empty dir").rmdir()
    (root / "empty dir").write_text("now a file")
    (root / "link").unlink()
    (root / "link").symlink_to("elsewhere")
    os.setxattr(root / "setuid", "user.x", b"1")
    (root / "exec.sh").chmod(0o700)
    os.utime(root / "a-b", ns=(5, 5))
    os.utime(root, ns=(1_500_000_000_000_000_001, 1_500_000_000_000_000_001))
    return {
        "state/a-b": "changed mtime",
        "state/empty dir": "changed type mode mtime xattrs",
        "state/exec.sh": "changed mode",
        "state/link": "changed target mtime",
        "state/new": "added",
        "state/secret": "removed",
        "state/setuid": "changed xattrs",
        "state/small.txt": "changed content mtime",
    }


def test_every_kind_of_change_is_named(repo: Repository, tmp_path: Path) -> None:
    make_everything(tmp_path / "in")
    first = snap(repo, tmp_path / "in")
    expected = change_everything(tmp_path / "in")
    second = snap(repo, tmp_path / "in")

    found = list(diff(Tree(repo, first), Tree(repo, second)))

    assert summary(found) == expected
    assert [change.path for change in found] == sorted(os.fsencode(p) for p in expected)


def test_a_directory_is_compared_with_a_snapshot(
    repo: Repository, tmp_path: Path
) -> None:
    make_everything(tmp_path / "in")
    tree = Tree(repo, snap(repo, tmp_path / "in"))
    roots = {"state": tmp_path / "in"}

    same = list(diff_directories(tree, roots, owners=OWNERS))
    expected = change_everything(tmp_path / "in")
    changed = list(diff_directories(tree, roots, owners=OWNERS))

    assert same == []
    assert summary(changed) == expected


def test_a_plan_of_a_restore_says_what_the_restore_does(
    repo: Repository, tmp_path: Path
) -> None:
    make_everything(tmp_path / "in")
    snapshot = snap(repo, tmp_path / "in")
    tree, roots = Tree(repo, snapshot), {"state": tmp_path / "in"}
    wanted = {"added": "removed", "removed": "added"}

    nothing = list(plan_restore(tree, roots, OWNERS, delete_extra=True))
    new = list(plan_restore(tree, {"state": tmp_path / "no"}, OWNERS))
    expected = change_everything(tmp_path / "in")
    (tmp_path / "in" / "-rf *").rename(tmp_path / "in" / "hidden")
    plan = list(plan_restore(tree, roots, OWNERS, delete_extra=True))
    kept = list(plan_restore(tree, roots, OWNERS))
    before = describe(tmp_path / "in")

    assert nothing == []
    assert {c.kind for c in new} == {"added"}
    assert len(new) == snapshot.files + sum(c.new[1] == 1 for c in new)
    mirrored = {p: wanted.get(k, k) for p, k in expected.items()}
    mirrored |= {"state/-rf *": "added", "state/hidden": "removed"}
    mirrored["state/a-b"] = "changed content mtime"  # not read, so perhaps
    found = {p: k for p, k in summary(plan).items() if p != "state"}
    assert found == mirrored
    assert not [c for c in kept if c.kind == "removed"]
    assert describe(tmp_path / "in") == before
    restore(repo, snapshot, roots=roots, owners=OWNERS, delete_extra=True)
    assert list(plan_restore(tree, roots, OWNERS, delete_extra=True)) == []


def test_owners_are_compared_only_when_it_is_known_who_is_who(
    repo: Repository, tmp_path: Path
) -> None:
    make_everything(tmp_path / "in")
    tree = Tree(repo, snap(repo, tmp_path / "in"))
    roots = {"state": tmp_path / "in"}
    others = Owners(local=ME, canonical=(77, 77))

    assert not list(diff_directories(tree, roots))
    assert {c.what for c in diff_directories(tree, roots, owners=others)} == {
        ("owner",)
    }


def test_a_volume_without_a_directory_is_said(repo: Repository, tmp_path: Path) -> None:
    make_everything(tmp_path / "in")
    tree = Tree(repo, snap(repo, tmp_path / "in"))

    with pytest.raises(NotFound, match="no directory for the volumes state"):
        list(diff_directories(tree, {}))


def test_what_is_the_same_is_not_read(repo: Repository, tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for number in range(6000):
        (root / f"{number}").write_text("x")
    first = snap(repo, root)
    (root / "3000").write_text("changed")
    second = snap(repo, root)
    trees = Tree(repo, first), Tree(repo, second)
    read: list[bytes] = []
    for tree in trees:
        page = tree.page

        def counted(page_id, count, page=page):
            read.append(page_id)
            return page(page_id, count)

        tree.page = counted  # type: ignore[method-assign]

    found = list(diff(*trees))

    assert [change.path for change in found] == [b"state/3000"]
    assert len(read) == 2


NAMES = some.binary(min_size=1, max_size=3).filter(
    lambda name: not {0, 47} & set(name) and name not in (b".", b"..")
)
TREES = some.recursive(
    some.dictionaries(NAMES, some.binary(max_size=4), max_size=4),
    lambda below: some.dictionaries(NAMES, some.binary(max_size=2) | below, max_size=4),
    max_leaves=12,
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(before=TREES, after=TREES)
def test_a_diff_is_what_a_comparison_of_all_entries_finds(
    tmp_path_factory: pytest.TempPathFactory, before, after
) -> None:
    repo, trees = new_repository(MemoryStore()), []
    for content in (before, after):
        base = tmp_path_factory.mktemp("diff")
        write_tree(base / "in", content)
        trees.append(Tree(repo, snap(repo, base / "in")))
        shutil.rmtree(base)
    rows = [[known.row for known in tree.everything()] for tree in trees]

    found = list(diff(*trees))

    assert found == list(compare(*rows, owners=True))
    left, right = ({row[0]: row for row in side} for side in rows)
    differing = {p for p in left.keys() | right.keys() if left.get(p) != right.get(p)}
    assert {change.path for change in found} == differing
