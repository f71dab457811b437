"""Every decoder of the engine on garbage: our own errors, and nothing else, quickly."""

import io
import json
import math
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some

from lobstertrap.errors import IntegrityError, LobsterTrapError, NoSpace
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import (
    Owners,
    Repository,
    Snapshot,
    restore,
    take_snapshot,
)
from lobstertrap.repository.browse import Finder, Tree
from lobstertrap.repository.check import check
from lobstertrap.repository.crypto import TRAILER_PART, seal_object
from lobstertrap.repository.derivation import Derivation
from lobstertrap.repository.entry import check_row, content_items, decode_page
from lobstertrap.repository.export import export
from lobstertrap.repository.format import (
    CONDEMNED_PREFIX,
    HEADER_SIZE,
    INDEX_PREFIX,
    KIND_CONDEMNED,
    KIND_INDEX,
    KIND_PACK,
    KIND_SNAPSHOT,
    PACK_PREFIX,
    PAGES,
    SNAPSHOT_PREFIX,
    Header,
    encode_footer,
    parse_footer,
    parse_header,
)
from lobstertrap.repository.index import Index, IndexTable
from lobstertrap.repository.pack import expand, parse_pack, parse_trailer
from lobstertrap.repository.repair import repair
from lobstertrap.repository.restorer import checked
from lobstertrap.repository.slots import parse_config
from lobstertrap.repository.snapshot import decode_snapshot
from lobstertrap.repository.tree import decode_branch, read_entries
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.forge import ROOT, Forger, entry
from tests.fixtures.trees import KEY, later, new_repository

OWNERS = Owners(local=(os.getuid(), os.getgid()), canonical=(1000, 1000))
ID = bytes(range(16))
EXAMPLES = int(os.environ.get("LOBSTERTRAP_FUZZ_EXAMPLES", "40"))
"""More of them, for a while, whenever a decoder changes."""

quick = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def ours(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a decoder; every error but ours goes through and fails the test."""
    try:
        return function(*arguments)
    except LobsterTrapError:
        return None


# Valid encodings of everything, out of a real repository


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A small repository with a long file, many small ones, and every kind of entry."""
    root = tmp_path_factory.mktemp("fuzz")
    (root / "long").write_bytes(os.urandom(300_000) * 20)
    (root / "link").symlink_to("long")
    (root / "name").hardlink_to(root / "long")
    os.mkfifo(root / "fifo")
    with (root / "hole").open("wb") as file:
        file.truncate(200_000)
    for number in range(80):
        (root / f"{number}").write_text(str(number))
    os.setxattr(root / "1", "user.a", b"b")
    repo = new_repository(MemoryStore())
    take_snapshot(repo, agent="ada", roots={"state": root}, owners=OWNERS, now=later)
    return repo


def plain_of(repo: Repository, prefix: str) -> bytes:
    """The plaintext of the first object below `prefix`."""
    info = next(repo.store.list(prefix))
    data = repo.store.get(info.key).data
    return bytes(repo.keys.cipher(data[:HEADER_SIZE]).open(0, data[HEADER_SIZE:]))


def pages_of(repo: Repository) -> tuple[list[bytes], list[bytes]]:
    """All branch pages and all entry pages."""
    blobs = repo.blob_reader(repo.load_index())
    branches = [blobs.page(b) for b, _ in repo.find("latest").branches]
    entries = [blobs.page(p) for b in branches for p, _, _, _ in decode_branch(b)]
    return branches, entries


def trailer_of(repo: Repository) -> bytes:
    info = next(repo.store.list(PACK_PREFIX))
    data = repo.store.get(info.key).data
    length = parse_footer(data[-8:], "x")
    cipher = repo.keys.cipher(data[:HEADER_SIZE])
    return bytes(cipher.open(TRAILER_PART, data[-8 - length : -8]))


def use_index(plain: bytes) -> None:
    """Parse an index and look things up in it."""
    table = IndexTable(plain)
    index = Index([table])
    for blob in (ID, bytes(16), b"\xff" * 16, table.ids[:16], table.ids[-16:]):
        if len(blob) == 16:
            ours(index.find, blob)


def use_page(page: bytes) -> None:
    """Parse an entry page as far as a restore does."""
    rows, contents = decode_page(page)
    for row in rows:
        ours(check_row, row)
    for content in contents:
        if isinstance(content, bytes):
            ours(content_items, content, 100)
        else:
            assert all(type(i) is bytes and len(i) == 16 for i in content)


DECODERS: dict[str, tuple[Callable[[bytes], Any], Callable[[Repository], bytes]]] = {
    "config": (parse_config, lambda r: r.store.get("repository/config").data),
    "index": (use_index, lambda r: plain_of(r, INDEX_PREFIX)),
    "manifest": (
        lambda data: decode_snapshot(data, "key"),
        lambda r: plain_of(r, SNAPSHOT_PREFIX),
    ),
    "trailer": (lambda data: parse_trailer(data, ID), trailer_of),
    "branch page": (decode_branch, lambda r: pages_of(r)[0][0]),
    "entry page": (use_page, lambda r: pages_of(r)[1][0]),
    "header": (
        lambda data: parse_header(data, kind=b"P", object_id=ID, key="key"),
        lambda _: Header(kind=b"P", id=ID).encode(),
    ),
    "footer": (lambda data: parse_footer(data, "key"), lambda _: encode_footer(100)),
    "compressed": (
        lambda data: expand(data, 5000),
        lambda _: zstandard.ZstdCompressor().compress(b"abcde" * 1000),
    ),
    "items": (lambda data: content_items(data, 7), lambda _: bytes(range(200))),
}

MUTATIONS = some.lists(
    some.tuples(
        some.sampled_from(["set", "cut", "insert", "repeat", "u32"]),
        some.floats(0, 1),
        some.binary(min_size=1, max_size=6)
        | some.sampled_from(
            [b"\xff\xff\xff\xff", bytes(4), b"\0\0\0\x80", b"\xdf\xff"]
        ),
    ),
    max_size=4,
)


def mutated(data: bytes, mutations: list[tuple[str, float, bytes]]) -> bytes:
    for how, where, new in mutations:
        place = int(where * len(data))
        if how == "cut":
            data = data[:place] + data[place + len(new) :]
        elif how == "insert":
            data = data[:place] + new + data[place:]
        elif how == "repeat":
            data = data[:place] + data[place : place + 40] + data[place:]
        elif how == "u32":
            place &= ~3
            data = data[:place] + new[:4].ljust(4, b"\0") + data[place + 4 :]
        else:
            data = data[:place] + new + data[place + len(new) :]
    return data


@pytest.mark.parametrize("kind", DECODERS)
@quick
@given(data=some.binary(max_size=300))
@example(data=b"")
def test_random_bytes_give_our_errors_only(kind: str, data: bytes) -> None:
    ours(DECODERS[kind][0], data)


@pytest.mark.parametrize("kind", DECODERS)
@quick
@given(mutations=MUTATIONS)
def test_mutated_encodings_give_our_errors_only(
    repo: Repository, kind: str, mutations: list[tuple[str, float, bytes]]
) -> None:
    decode, valid = DECODERS[kind]
    decode(valid(repo))

    ours(decode, mutated(valid(repo), mutations))


# Values of the wrong kind in valid msgpack

LEAVES = (
    some.none()
    | some.booleans()
    | some.sampled_from([0, 1, 2, 4, 7, -1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63])
    | some.sampled_from([math.nan, math.inf, -1.0, 0.0, 4.0])
    | some.sampled_from([b"", b".", b"..", b"a/b", bytes(16), ID, bytes(32), b"x\0"])
    | some.text(max_size=3)
    | some.binary(max_size=20)
)
VALUES = some.recursive(
    LEAVES,
    lambda below: (
        some.lists(below, max_size=3)
        | some.dictionaries(
            some.text(max_size=2) | some.integers(0, 9), below, max_size=2
        )
    ),
    max_leaves=4,
)
CHANGES = some.lists(
    some.tuples(some.lists(some.floats(0, 0.999), max_size=4), VALUES), max_size=3
)


def changed(value: Any, steps: list[float], new: Any) -> Any:
    """Put `new` at a place inside a value of lists and maps."""
    if not steps or not isinstance(value, list | dict) or not value:
        return new
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = keys[int(steps[0] * len(keys))]
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = changed(value[key], steps[1:], new)
    return copy


def twisted(value: Any, changes: list[tuple[list[float], Any]]) -> Any:
    for steps, new in changes:
        value = changed(value, steps, new)
    return value


@quick
@given(changes=CHANGES)
def test_wrong_values_in_a_manifest(repo: Repository, changes) -> None:
    plain = plain_of(repo, SNAPSHOT_PREFIX)
    if plain[0] == 1:
        plain = b"\0" + zstandard.ZstdDecompressor().decompress(plain[5:])
    body = msgpack.unpackb(plain[1:])

    snapshot = ours(decode_snapshot, b"\0" + msgpack.packb(twisted(body, changes)), "k")

    if snapshot is not None:
        snapshot.encode()
        assert isinstance(snapshot, Snapshot)
        assert math.isfinite(snapshot.created_at)


@pytest.mark.parametrize("time", [math.nan, math.inf, -1.0, 1e300, "now", None])
def test_a_time_that_no_calendar_has_is_refused(repo: Repository, time) -> None:
    snapshot = repo.find("latest")

    with pytest.raises(IntegrityError):
        decode_snapshot(b"\0" + manifest(snapshot.encode(), created_at=time), "key")


def manifest(plain: bytes, **fields: Any) -> bytes:
    """Return a manifest's map with other values in it."""
    if plain[0] == 1:
        plain = b"\0" + zstandard.ZstdDecompressor().decompress(plain[5:])
    return bytes(msgpack.packb(msgpack.unpackb(plain[1:]) | fields))


@quick
@given(changes=CHANGES)
def test_wrong_values_in_a_branch_page(repo: Repository, changes) -> None:
    branch = msgpack.unpackb(pages_of(repo)[0][0])

    ours(decode_branch, msgpack.packb(twisted(branch, changes)))


@quick
@given(changes=CHANGES)
def test_wrong_values_in_a_config(repo: Repository, changes) -> None:
    body = json.loads(repo.store.get("repository/config").data)
    wrong = twisted(body, [c for c in changes if _is_json(c[1])])

    config = ours(parse_config, json.dumps(wrong).encode())

    cheap = config and all(_cheap(slot) for slot in config.slots)
    if config is not None and cheap:
        ours(config.unlock, Derivation(SecretValue(KEY)))


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _cheap(slot: dict[str, Any]) -> bool:
    numbers = [slot.get(name) for name in "nrp"]
    return not all(isinstance(n, int) for n in numbers) or math.prod(numbers) < 4096


@pytest.fixture(scope="module")
def forger() -> Forger:
    return Forger(new_repository(MemoryStore()))


ROWS = [
    ROOT,
    entry(b"state/a", 1),
    (*entry(b"state/a/f", 0), 1, bytes(32)),
    entry(b"state/b", 3),
    entry(b"state/c", 2, b"target"),
    entry(b"state/d", 4, b"state/a/f"),
    entry(b"state/e", 6, 1, 2),
    (*entry(b"state/g", 0), 40, bytes(32)),
]
CONTENTS = [ID, [ID, ID]]


@settings(quick, max_examples=EXAMPLES // 2)
@given(rows=CHANGES, contents=CHANGES)
def test_wrong_values_in_a_tree_stop_every_reader_with_our_error(
    forger: Forger, tmp_path_factory: pytest.TempPathFactory, rows, contents
) -> None:
    page = msgpack.packb(twisted([list(r) for r in ROWS], rows))
    page += msgpack.packb(twisted(CONTENTS, contents))
    ours(use_page, page)
    snapshot = forger.page(page, len(ROWS))

    read_everywhere(forger.repo, snapshot, tmp_path_factory.mktemp("wrong"))


def read_everywhere(repo: Repository, snapshot: Snapshot, base: Path) -> list[str]:
    """Read a snapshot in every way that there is and return what was refused."""
    inside = base / "volume"
    inside.mkdir()
    tree = Tree(repo, snapshot)
    said: list[str] = []
    ways: list[Callable[[], Any]] = [
        lambda: restore(repo, snapshot, roots={"state": inside}, owners=OWNERS),
        lambda: export(tree, io.BytesIO()),
        lambda: list(tree.everything()),
        lambda: list(tree.below(b"", recursive=True)),
        lambda: list(tree.below(b"state")),
        lambda: list(Finder("*").find(tree)),
        lambda: [list(tree.cat(b"state/a/f")), list(tree.cat(b"state/g"))],
    ]
    for way in ways:
        try:
            way()
        except LobsterTrapError as error:
            said.append(error.message)
    assert [path.name for path in base.iterdir()] == ["volume"]
    return said


# Garbage where the repository itself finds it: sealed with the right keys


@quick
@given(mutations=MUTATIONS, which=some.sampled_from(["I", "S", "C"]))
def test_sealed_garbage_is_an_integrity_error_when_it_is_read(
    repo: Repository, mutations: list[tuple[str, float, bytes]], which: str
) -> None:
    store = MemoryStore()
    for info in repo.store.list(""):
        store.put(info.key, repo.store.get(info.key).data)
    other = Repository(store, repo.keys)
    prefix, kind, valid = {
        "I": (INDEX_PREFIX, KIND_INDEX, plain_of(repo, INDEX_PREFIX)),
        "S": (SNAPSHOT_PREFIX, KIND_SNAPSHOT, plain_of(repo, SNAPSHOT_PREFIX)),
        "C": (CONDEMNED_PREFIX, KIND_CONDEMNED, bytes(64)),
    }[which]
    name = next(repo.store.list(prefix)).key if which == "S" else prefix + ID.hex()
    object_id = bytes.fromhex(name[-32:])
    plain = mutated(valid, mutations)
    pieces = seal_object(repo.keys, Header(kind=kind, id=object_id), plain)
    store.put(name, pieces)

    for read in (other.load_index, other.snapshots, other.marks):
        ours(read)


@quick
@given(mutations=MUTATIONS)
def test_a_pack_with_a_sealed_wrong_trailer(
    repo: Repository, mutations: list[tuple[str, float, bytes]]
) -> None:
    header = Header(kind=KIND_PACK, id=ID).encode()
    sealed = repo.keys.cipher(header).seal(
        TRAILER_PART, mutated(trailer_of(repo), mutations)
    )
    data = header + bytes(100) + sealed + encode_footer(len(sealed))

    ours(lambda: parse_pack(repo.keys, data, pack_id=ID, key="key"))


# Bombs


def _index_head(*counts: int) -> bytes:
    return struct.pack("<5I", *counts)


BOMBS: list[tuple[str, bytes]] = [
    ("index", _index_head(0, 0, 0, 1 << 28, 0)),
    ("index", _index_head(0xFFFFFFFF, 0, 0, 0, 0)),
    ("index", _index_head(0, 0, 0, 0, 24)),
    ("index", _index_head(0, 0, 0, 0, 0xFFFFFFFF)),
    ("trailer", struct.pack("<3I", 0, 0xFFFFFFFF, 0xFFFFFFFF)),
    ("manifest", b"\1" + struct.pack("<I", 64 << 20) + b"\x28\xb5\x2f\xfd" + bytes(40)),
    ("manifest", b"\1\xff\xff\xff\xff" + bytes(40)),
    ("manifest", b"\0\xdd\xff\xff\xff\xff"),
    ("manifest", b"\0\xdf\xff\xff\xff\xff"),
    ("manifest", b"\0\xc6\xff\xff\xff\xff"),
    ("manifest", b"\0" + b"\x91" * 100_000),
    ("manifest", b"\0" + b"\x81" * 100_000),
    ("entry page", b"\xdd\xff\xff\xff\xff"),
    ("entry page", b"\xdb\xff\xff\xff\xff"),
    ("entry page", b"\x91" * 100_000),
    ("branch page", b"\xdd\x10\x00\x00\x00"),
    ("branch page", b"\x91" * 100_000),
    ("config", b"[" * 200_000),
    ("config", b'{"slots": ' + b"9" * 200_000 + b"}"),
    ("config", bytes(300_000)),
    ("footer", b"\xff\xff\xff\xffLTRE"),
    ("compressed", zstandard.ZstdCompressor().compress(bytes(50_000_000))),
    (
        "compressed",
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(50_000_000)),
    ),
]


@pytest.mark.parametrize(("kind", "bomb"), BOMBS, ids=lambda v: str(v)[:30])
def test_a_bomb_is_refused_in_little_memory(kind: str, bomb: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(LobsterTrapError):
            DECODERS[kind][0](bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 20_000_000


def test_a_segment_is_never_expanded_beyond_its_promise(repo: Repository) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(60_000_000))
    assert len(bomb) < 10_000

    with pytest.raises(IntegrityError):
        expand(bomb, 1000)
    with pytest.raises(IntegrityError):
        expand(bomb[: len(bomb) // 2], 60_000_000)


# Trees that want out


def _refused(forger: Forger, base: Path, rows: list[Any], contents: list[Any]) -> None:
    """Assert that whoever might write refuses the last entry by its name."""
    snapshot = forger.tree(rows, contents)
    last = rows[-1][0]
    named = repr(last.decode("utf-8", "backslashreplace")) if last else "''"
    inside = base / "volume"
    inside.mkdir()

    with pytest.raises((IntegrityError, NoSpace)) as by_restore:
        restore(forger.repo, snapshot, roots={"state": inside}, owners=OWNERS)
    with pytest.raises(IntegrityError) as by_export:
        export(Tree(forger.repo, snapshot), io.BytesIO())

    assert named in by_restore.value.message
    assert named in by_export.value.message
    assert snapshot.short_id in by_export.value.message
    assert [path.name for path in base.iterdir()] == ["volume"]
    assert not check(forger.repo).ok


@pytest.mark.parametrize(
    "path",
    [
        b"state/..",
        b"state/../evil",
        b"state/.",
        b"state//evil",
        b"state/",
        b"/etc/evil",
        b"..",
        b"/",
        b"",
        b"state/a\0b",
        b"state/" + b"n" * 256,
        b"stat",
        b"state/zz/evil",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(
    forger: Forger, tmp_path: Path, path: bytes
) -> None:
    row, content = forger.file(path)

    _refused(forger, tmp_path, [ROOT, row], [content])


def test_a_name_that_occurs_twice_is_refused(forger: Forger, tmp_path: Path) -> None:
    row, content = forger.file(b"state/twice")

    _refused(forger, tmp_path, [ROOT, row, row], [content, content])


def test_a_child_of_a_link_is_refused(forger: Forger, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    link = entry(b"state/link", 2, os.fsencode(tmp_path))
    row, content = forger.file(b"state/link/evil")
    (tmp_path / "volume").rmdir()

    _refused(forger, tmp_path, [ROOT, link, row], [content])


def test_a_child_of_a_file_is_refused(forger: Forger, tmp_path: Path) -> None:
    row, content = forger.file(b"state/file")
    child = entry(b"state/file/child", 1)

    _refused(forger, tmp_path, [ROOT, row, child], [content])


def test_entries_out_of_order_are_refused(forger: Forger, tmp_path: Path) -> None:
    rows = [ROOT, entry(b"state/b", 1), entry(b"state/a", 1)]

    _refused(forger, tmp_path, rows, [])


@pytest.mark.parametrize(
    "pages",
    [
        [[ROOT, entry(b"state/b", 1)], [entry(b"state/a", 1)]],
        [[ROOT, entry(b"state/a", 1)], [entry(b"state/a", 1)]],
        [[ROOT], [entry(b"state/a/b", 1)]],
        [[ROOT, entry(b"state/a", 3)], [entry(b"state/a/b", 1)]],
        [[ROOT, entry(b"state/a", 1), entry(b"state/b", 1)], [entry(b"state/a/c", 3)]],
        [[ROOT], [ROOT]],
        [[ROOT], [entry(b"state/a", 1)], [entry(b"state/b/c", 3)]],
    ],
)
def test_the_check_sees_order_across_pages_as_a_restore_does(
    forger: Forger, pages: list[list[Any]]
) -> None:
    snapshot = forger.pages(pages)

    with pytest.raises(IntegrityError) as refused:
        _checked(forger, snapshot)
    report = check(forger.repo)
    repaired = repair(forger.repo)

    (verdict,) = [v for v in report.snapshots if v.id == snapshot.id]
    assert verdict.problems == (refused.value.message,)
    assert snapshot.id in {mended.verdict.id for mended in repaired.snapshots}
    assert check(forger.repo).ok


def _checked(forger: Forger, snapshot: Snapshot) -> list[Any]:
    reader = forger.repo.blob_reader(forger.repo.load_index())
    return list(checked(read_entries(reader, snapshot.branches)))


def test_what_is_in_order_across_pages_is_good(forger: Forger) -> None:
    pages = [
        [ROOT, entry(b"state/a", 1), entry(b"state/a/b", 1)],
        [entry(b"state/a/b/c", 1)],
        [entry(b"state/a/b/d", 3), entry(b"state/a/e", 3), entry(b"state/a-", 3)],
        [entry(b"state/f", 1), entry(b"state/f/g", 3)],
        [entry(b"state/f/h", 3), entry(b"state/i", 3)],
    ]
    snapshot = forger.pages(pages)

    assert len(_checked(forger, snapshot)) == 11
    assert check(forger.repo).ok


@pytest.mark.parametrize(
    "row",
    [
        entry(b"state/x", 2, b""),
        entry(b"state/x", 2, b"a\0b"),
        entry(b"state/x", 2, b"x" * 5000),
        entry(b"state/x", 4, b"state/../../etc/passwd"),
        entry(b"state/x", 4, b"/etc/passwd"),
        entry(b"state/x", 5, -1, 3),
        entry(b"state/x", 6, 1 << 40, 3),
        (b"state/x", 3, 0o1000000, 0, 0, 0, None),
        (b"state/x", 3, 0o600, 1 << 40, 0, 0, None),
        (b"state/x", 3, 0o600, 0, -1, 0, None),
        (b"state/x", 3, 0o600, 0, 0, (1 << 64) - 1, None),
        (b"state/x", 3, 0o600, 0, 0, 0, [[b"trusted.overlay.opaque", b"y"]]),
        (b"state/x", 3, 0o600, 0, 0, 0, [[b"user.x"]]),
        (b"state/x", 1, 0o600, 0, 0, 0, 7),
    ],
)
def test_an_entry_with_impossible_fields_is_refused(
    forger: Forger, tmp_path: Path, row: tuple[Any, ...]
) -> None:
    _refused(forger, tmp_path, [ROOT, row], [])


@pytest.mark.parametrize("size", [2, 1 << 40, 1 << 62])
def test_a_file_of_another_size_than_its_chunks_is_refused(
    forger: Forger, tmp_path: Path, size: int
) -> None:
    row, chunk = forger.file(b"state/big", b"y")
    content = chunk + struct.pack("<I", 1)

    _refused(forger, tmp_path, [ROOT, (*row[:7], size, row[8])], [content])


def test_a_count_that_does_not_fit_is_refused(forger: Forger, tmp_path: Path) -> None:
    for count in (0, 2, 257, 1 << 40, -1, None, "1", 1.0):
        snapshot = forger.tree([ROOT], [], count="" if count is None else count)
        said = read_everywhere(forger.repo, snapshot, _fresh(tmp_path))

        assert said
        assert all("branch page is damaged" in message for message in said)


def _fresh(base: Path) -> Path:
    path = base / str(len(list(base.iterdir())))
    path.mkdir()
    return path


def test_a_hard_link_to_something_else_than_a_file_is_refused(
    forger: Forger, tmp_path: Path
) -> None:
    rows = [
        ROOT,
        entry(b"state/a", 2, b"/etc/passwd"),
        entry(b"state/b", 4, b"state/a"),
    ]
    snapshot = forger.tree(rows)

    with pytest.raises(IntegrityError, match="'state/b'"):
        restore(forger.repo, snapshot, roots={"state": tmp_path / "out"}, owners=OWNERS)


def test_the_check_survives_what_readers_refuse(forger: Forger) -> None:
    forger.page(b"garbage")
    forger.branches(b"garbage")
    forger.save(PAGES, b"nobody needs this")

    report = check(forger.repo, sample=100)

    assert not report.ok
