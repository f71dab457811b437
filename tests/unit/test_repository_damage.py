"""Each kind of damage to a golden repository, and what readers and the check say."""

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lobstertrap.errors import (
    AccessDenied,
    IntegrityError,
    InvalidInput,
    LobsterTrapError,
    NotFound,
)
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Owners, Repository, restore
from lobstertrap.repository.browse import Tree
from lobstertrap.repository.check import check
from lobstertrap.repository.export import export
from lobstertrap.repository.format import CHUNKS, PAGES, pack_key
from lobstertrap.repository.repair import repair
from lobstertrap.stores.directory import DirectoryStore
from tests.golden.make_v1 import PASSPHRASE, contents

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"
OWNERS = Owners(local=(os.getuid(), os.getgid()), canonical=(1000, 1000))
LOST = ("state/log.jsonl", "state/memory/note.md", "state/state.sqlite")
"""Some of what is in the pack of the first snapshot's chunks."""


class Bucket:
    """A copy of a golden repository that can be damaged."""

    def __init__(self, root: Path) -> None:
        self.root = root
        repo = self.open()
        packs = repo.load_index().packs.values()
        chunks = sorted((p for p in packs if p.kind == CHUNKS), key=lambda p: -p.size)
        names = repo.snapshot_names()
        self.first, self.second = names
        self.chunks = pack_key(chunks[0].id)
        """Of the first snapshot, which the second needs too."""
        self.later_chunks = pack_key(chunks[1].id)
        ours = {s.pack.id for s in self._pages_of_the_second(repo)}
        self.pages = pack_key(min(ours))
        self.index = next(
            key
            for key, table in repo.load_index_tables().items()
            if any(pack_key(pack.id) == self.chunks for pack in table.packs)
        )

    def open(self) -> Repository:
        """Open it as a new process would."""
        return Repository.open(DirectoryStore(self.root), SecretValue(PASSPHRASE))

    def _pages_of_the_second(self, repo: Repository):
        index = repo.load_index()
        first, second = (
            {b for b, _ in repo.read_snapshot(name).branches}
            for name in repo.snapshot_names()
        )
        found = [index.find(branch).segment for branch in second - first]
        assert all(info.pack.kind == PAGES for info in found)
        return found

    def remove(self, key: str) -> None:
        """Delete an object."""
        (self.root / key).unlink()

    def cut(self, key: str) -> None:
        """Lose the second half of an object."""
        path = self.root / key
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def flip(self, key: str, at: int) -> None:
        """Flip one bit."""
        path = self.root / key
        data = bytearray(path.read_bytes())
        data[at] ^= 0x10
        path.write_bytes(data)

    def restore(self, prefix: str, out: Path) -> dict[str, str]:
        """Restore a snapshot and return what came of it."""
        repo = self.open()
        restore(repo, repo.find(prefix), roots={"state": out}, owners=OWNERS)
        return contents(out)


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    shutil.copytree(GOLDEN / "bucket", tmp_path / "bucket")
    return Bucket(tmp_path / "bucket")


@pytest.fixture
def expected() -> list[dict[str, dict[str, str]]]:
    return json.loads((GOLDEN / "expected.json").read_text())


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of damage, and the verdicts on it."""

    damage: Callable[[Bucket], object]
    lost: int
    """How many of the two snapshots cannot be restored."""
    named: Callable[[Bucket], str] = lambda _: ""
    """What every error has to name."""
    files: bool = False
    """Whether errors name the files that are lost."""
    problem: bool = True
    """Whether the check names an object, beside the snapshots."""


def object_id(key: str) -> str:
    return key.rpartition("/")[2]


KINDS = {
    "a pack of chunks is missing": Kind(
        damage=lambda b: b.remove(b.chunks),
        lost=2,
        named=lambda b: object_id(b.chunks),
        files=True,
    ),
    "a pack of chunks is cut off": Kind(
        damage=lambda b: b.cut(b.chunks),
        lost=2,
        named=lambda b: object_id(b.chunks),
        files=True,
    ),
    "a bit of a segment of chunks is flipped": Kind(
        damage=lambda b: b.flip(b.chunks, 3000),
        lost=2,
        named=lambda b: object_id(b.chunks),
        files=True,
    ),
    "a pack of pages is missing": Kind(
        damage=lambda b: b.remove(b.pages),
        lost=1,
        named=lambda b: object_id(b.pages),
    ),
    "a pack of pages is cut off": Kind(
        damage=lambda b: b.cut(b.pages), lost=1, named=lambda b: object_id(b.pages)
    ),
    "a bit of a page is flipped": Kind(
        damage=lambda b: b.flip(b.pages, 60), lost=1, named=lambda b: object_id(b.pages)
    ),
    "a bit of a trailer is flipped": Kind(
        damage=lambda b: b.flip(b.chunks, -20), lost=0
    ),
    "a bit of a footer is flipped": Kind(damage=lambda b: b.flip(b.chunks, -1), lost=0),
    "a bit of a pack's header is flipped": Kind(
        damage=lambda b: b.flip(b.chunks, 12), lost=0
    ),
    "an index is missing": Kind(
        damage=lambda b: b.remove(b.index), lost=2, problem=False
    ),
    "a bit of an index is flipped": Kind(
        damage=lambda b: b.flip(b.index, 200),
        lost=2,
        named=lambda b: object_id(b.index),
    ),
    "an index is cut off": Kind(
        damage=lambda b: b.cut(b.index), lost=2, named=lambda b: object_id(b.index)
    ),
    "a bit of a manifest is flipped": Kind(
        damage=lambda b: b.flip(b.second.key, 100),
        lost=1,
        named=lambda b: b.second.id,
    ),
    "a manifest is cut off": Kind(
        damage=lambda b: b.cut(b.second.key), lost=1, named=lambda b: b.second.id
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_restore_is_right_or_says_what_is_damaged(
    bucket: Bucket, expected: list, tmp_path: Path, name: str
) -> None:
    kind = KINDS[name]
    kind.damage(bucket)
    said: list[str] = []

    for number, snapshot in enumerate((bucket.first, bucket.second)):
        try:
            found = bucket.restore(snapshot.id, tmp_path / f"out{number}")
        except IntegrityError as error:
            said.append(error.message)
        else:
            assert found == expected[number]["contents"]

    assert len(said) == kind.lost
    assert all(kind.named(bucket) in message for message in said)
    assert all(_names_a_snapshot(bucket, message) for message in said)
    assert not kind.files or all(_names_a_file(message) for message in said)


def _names_a_snapshot(bucket: Bucket, message: str) -> bool:
    return any(one.id[:8] in message for one in (bucket.first, bucket.second))


def _names_a_file(message: str) -> bool:
    return any(path in message for path in LOST)


@pytest.mark.parametrize("name", KINDS)
def test_an_export_is_right_or_says_what_is_damaged(bucket: Bucket, name: str) -> None:
    kind = KINDS[name]
    kind.damage(bucket)
    said: list[str] = []

    for snapshot in (bucket.first, bucket.second):
        repo = bucket.open()
        try:
            export(Tree(repo, repo.find(snapshot.id)), io.BytesIO())
        except IntegrityError as error:
            said.append(error.message)

    assert len(said) == kind.lost
    assert all(kind.named(bucket) in message for message in said)
    assert not kind.files or all(_names_a_file(message) for message in said)


@pytest.mark.parametrize("name", KINDS)
def test_a_check_gives_the_verdict(bucket: Bucket, name: str) -> None:
    kind = KINDS[name]
    kind.damage(bucket)

    report = check(bucket.open(), sample=100)
    bad = [verdict for verdict in report.snapshots if not verdict.ok]

    assert not report.ok
    unreadable = 2 - len(report.snapshots)
    assert len(bad) + unreadable == kind.lost
    assert bool(report.problems) == kind.problem
    assert kind.named(bucket) in " ".join(report.problems)
    if kind.files:
        assert set(LOST) <= set(bad[0].lost_files)


@pytest.mark.parametrize("name", KINDS)
def test_a_repair_keeps_all_that_can_be_read_and_names_the_rest(
    bucket: Bucket, expected: list, tmp_path: Path, name: str
) -> None:
    kind = KINDS[name]
    whole = {one.id: files["contents"] for one, files in _snapshots(bucket, expected)}
    kind.damage(bucket)
    kept = bucket.first.id if "manifest" in name else ""

    report = repair(bucket.open(), read_data=True)
    again = repair(bucket.open(), read_data=True)

    assert check(bucket.open(), sample=100).ok
    assert (again.removed, again.snapshots) == ((), ())
    for old in report.snapshots:
        whole[str(old.replaced_by)] = whole.pop(old.verdict.id)
        assert old.replaced_by or not kind.files
    left = {one.id for one in bucket.open().snapshots()}
    assert left == ({kept} if kept else whole.keys() - {"None"})
    for number, one in enumerate(sorted(left)):
        files = bucket.restore(one, tmp_path / str(number))
        assert files.items() <= whole[one].items()
        lost = whole[one].keys() - files.keys()
        assert not lost or any(v.verdict.lost for v in report.snapshots)
        assert not lost or kind.lost
    index_alone = "an index" in name
    assert not index_alone or not report.snapshots


def _snapshots(bucket: Bucket, expected: list) -> list:
    return list(zip((bucket.first, bucket.second), expected, strict=True))


@pytest.mark.parametrize(
    "name", ["a bit of a manifest is flipped", "a manifest is cut off"]
)
def test_a_damaged_manifest_does_not_hide_the_others(
    bucket: Bucket, expected: list, tmp_path: Path, name: str
) -> None:
    KINDS[name].damage(bucket)
    told: list[tuple[str, str]] = []

    found = bucket.open().snapshots(
        on_unreadable=lambda name, error: told.append((name.id, error.message))
    )

    assert [snapshot.id for snapshot in found] == [bucket.first.id]
    assert [snapshot_id for snapshot_id, _ in told] == [bucket.second.id]
    assert bucket.second.id in told[0][1]
    assert bucket.restore(found[0].id, tmp_path / "o") == expected[0]["contents"]


def test_a_snapshot_that_was_deleted_leaves_the_others_whole(
    bucket: Bucket, expected: list, tmp_path: Path
) -> None:
    bucket.remove(bucket.second.key)

    assert check(bucket.open(), sample=100).ok
    assert bucket.restore("latest", tmp_path / "out") == expected[0]["contents"]


def test_what_needs_no_damaged_pack_is_still_read(
    bucket: Bucket, expected: list, tmp_path: Path
) -> None:
    bucket.flip(bucket.later_chunks, 3000)
    read: dict[bytes, bytes | None] = {}

    with pytest.raises(IntegrityError):
        bucket.restore(bucket.second.id, tmp_path / "second")
    tree = Tree(bucket.open(), bucket.open().find(bucket.second.id))
    for known in tree.everything():
        if known.row[1] == 0:
            try:
                read[known.row[0]] = b"".join(tree.cat(known.row[0]))
            except IntegrityError:
                read[known.row[0]] = None

    assert None in read.values()
    assert read[b"state/memory/note.md"] == b"# Golden\n"
    assert bucket.restore(bucket.first.id, tmp_path / "1") == expected[0]["contents"]


# The config


def edit(bucket: Bucket, change: Callable[[dict], object]) -> None:
    path = bucket.root / "repository" / "config"
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda c: c.update(version=2), InvalidInput, "newer version"),
        (
            lambda c: c.update(format="other"),
            IntegrityError,
            "object is damaged",
        ),
        (lambda c: c.pop("slots"), IntegrityError, "object is damaged"),
        (lambda c: c.update(id="00" * 16), AccessDenied, "does not open"),
        (lambda c: c["slots"].clear(), AccessDenied, "does not open"),
        (lambda c: c["slots"][0].update(n=1 << 30), AccessDenied, "does not open"),
        (lambda c: c["slots"][0].update(salt="00" * 32), AccessDenied, "does not open"),
        (
            lambda c: c["slots"][0].update(wrapped="00" * 48),
            AccessDenied,
            "does not open",
        ),
    ],
)
def test_a_damaged_config_or_slot_is_said(
    bucket: Bucket,
    change: Callable[[dict], object],
    error: type[LobsterTrapError],
    said: str,
) -> None:
    edit(bucket, change)

    with pytest.raises(error, match=said):
        bucket.open()


def test_a_slot_of_an_unknown_kind_is_passed_over(bucket: Bucket) -> None:
    edit(bucket, lambda c: c["slots"].insert(0, {"kind": "x25519", "wrapped": 7}))

    assert len(bucket.open().snapshots()) == 2


def test_a_repository_without_its_config_is_not_made_anew_over_it(
    bucket: Bucket,
) -> None:
    bucket.remove("repository/config")

    with pytest.raises(NotFound):
        bucket.open()


@pytest.mark.parametrize("at", [5, 6])
@pytest.mark.parametrize("what", ["manifest", "index"])
def test_an_object_of_a_newer_version_is_said_to_be_newer(
    bucket: Bucket, tmp_path: Path, at: int, what: str
) -> None:
    key = {"manifest": bucket.second.key, "index": bucket.index}[what]
    path = bucket.root / key
    data = bytearray(path.read_bytes())
    data[at] += 1
    path.write_bytes(data)

    with pytest.raises(InvalidInput, match="newer version of lobster trap"):
        bucket.restore(bucket.second.id, tmp_path / "out")


def test_objects_that_changed_places_are_refused(
    bucket: Bucket, tmp_path: Path
) -> None:
    first, second = (bucket.root / b.key for b in (bucket.first, bucket.second))
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)

    for snapshot in (bucket.first, bucket.second):
        with pytest.raises(IntegrityError, match="not what its name says"):
            bucket.restore(snapshot.id, tmp_path / "out")
