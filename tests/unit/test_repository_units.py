"""The parts of the engine by their properties: chunker, packs, index, digests, keys."""

import json
import random

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as some

from lobstertrap.errors import AccessDenied, IntegrityError, InvalidInput
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Repository
from lobstertrap.repository.chunker import (
    MAX_CHUNK,
    MIN_CHUNK,
    SQLITE_CHUNK,
    SQLITE_MAGIC,
    Chunker,
)
from lobstertrap.repository.crypto import Keys
from lobstertrap.repository.derivation import Derivation
from lobstertrap.repository.digest import BLOCK, ContentDigest, content_digest
from lobstertrap.repository.entry import content_items, cut_content
from lobstertrap.repository.exclude import Exclude
from lobstertrap.repository.format import CHUNKS, PAGES, newer
from lobstertrap.repository.index import Index, IndexTable, encode_index
from lobstertrap.repository.pack import (
    Compressor,
    PackBuilder,
    PackTable,
    Segment,
    expand,
    open_segment,
    pack_cipher,
    parse_pack,
)
from lobstertrap.repository.slots import (
    Config,
    make_slot,
    parse_config,
)
from lobstertrap.repository.snapshot import Owners
from lobstertrap.stores.memory import MemoryStore
from tests.fixtures.trees import CHEAP, KEY, new_repository

KEYS = Keys.from_master(bytes(range(32)))


def cut(data: bytes, seed: int = 1, step: int = 1 << 20) -> list[bytes]:
    """Cut data that comes in reads of at most `step`."""
    place = 0

    def read_into(view: memoryview) -> int:
        nonlocal place
        piece = data[place : place + min(step, len(view))]
        view[: len(piece)] = piece
        place += len(piece)
        return len(piece)

    seen = bytearray()
    chunks = [bytes(c) for c in Chunker(seed).chunks(read_into, seen.extend)]
    assert bytes(seen) == data
    return chunks


@settings(max_examples=30, deadline=None)
@given(
    some.integers(0, 2**32),
    some.integers(0, 12 << 20),
    some.integers(1, 5 << 20),
    some.booleans(),
)
def test_chunks_are_the_data_in_order(
    seed: int, size: int, step: int, sqlite: bool
) -> None:
    data = random.Random(seed).randbytes(size)  # noqa: S311 - test data
    if sqlite:
        data = SQLITE_MAGIC + data

    chunks = cut(data, step=step)

    assert b"".join(chunks) == data
    assert chunks == cut(data)  # however the reads fall
    sizes = {len(c) for c in chunks[:-1]}
    if sqlite:
        assert sizes <= {SQLITE_CHUNK}
    else:
        assert all(MIN_CHUNK <= n <= MAX_CHUNK for n in sizes)


def test_an_insertion_changes_few_chunks() -> None:
    data = random.Random(5).randbytes(6 << 20)  # noqa: S311 - test data

    before = set(cut(data))
    after = cut(data[:2_000_000] + b"inserted" + data[2_000_000:])

    assert len([c for c in after if c not in before]) <= 4


def test_another_key_cuts_elsewhere() -> None:
    data = random.Random(6).randbytes(3 << 20)  # noqa: S311 - test data

    assert cut(data, seed=1) != cut(data, seed=2)


@settings(max_examples=40, deadline=None)
@given(some.lists(some.integers(0, 700_000), max_size=6), some.booleans())
def test_the_content_digest_does_not_depend_on_pieces(
    sizes: list[int], zeros: bool
) -> None:
    chance = random.Random(str(sizes))  # noqa: S311 - test data
    digest, whole = ContentDigest(), bytearray()
    for number, size in enumerate(sizes):
        piece = bytes(size) if number % 2 else chance.randbytes(size)
        if zeros and number % 2:
            digest.zeros(size)
        else:
            digest.update(memoryview(piece))
        whole += piece

    assert digest.finish() == content_digest(bytes(whole))


def test_the_content_digest_is_what_the_format_says() -> None:
    data = random.Random(8).randbytes(2 * BLOCK + 5)  # noqa: S311 - test data
    blocks = [data[i : i + BLOCK] for i in range(0, len(data), BLOCK)]
    joined = b"".join(blake3(block).digest() for block in blocks)

    assert content_digest(data) == blake3(joined).digest()
    assert content_digest(data[:BLOCK]) == blake3(data[:BLOCK]).digest()
    assert content_digest(b"") == blake3(b"").digest()


BLOBS = some.lists(some.binary(max_size=2000), min_size=1, max_size=20)


def build(segments: list[list[bytes]], kind: int = CHUNKS) -> PackBuilder:
    pack = PackBuilder(KEYS, bytes(16), kind)
    shrink = Compressor().shrink
    for blobs in segments:
        data = b"".join(blobs)
        ids = [KEYS.chunk_id(blob) for blob in blobs]
        segment = Segment(data=data, ids=ids, lengths=[len(b) for b in blobs])
        pack.add(segment, shrink(data))
    pack.finish()
    return pack


@settings(max_examples=40, deadline=None)
@given(some.lists(BLOBS, max_size=5), some.sampled_from([CHUNKS, PAGES]))
def test_a_pack_tells_what_is_in_it(segments: list[list[bytes]], kind: int) -> None:
    pack = build(segments, kind)
    data = b"".join(pack.pieces)

    table = parse_pack(KEYS, data, pack_id=bytes(16), key="p")

    assert table == pack.table
    assert table.size == len(data)
    for number, (offset, blobs) in enumerate(
        zip(table.segment_offsets(), segments, strict=True)
    ):
        stored = data[offset : offset + table.stored[number]]
        plain = open_segment(
            pack_cipher(KEYS, table.id), number, stored, table.plain[number]
        )
        assert bytes(plain) == b"".join(blobs)


@settings(max_examples=60, deadline=None)
@given(some.data())
def test_a_changed_pack_is_refused(data: some.DataObject) -> None:
    whole = b"".join(build([[b"one", b"two" * 500], [b"three"]]).pieces)
    at = data.draw(some.integers(0, len(whole) - 1))
    bit = 1 << data.draw(some.integers(0, 7))
    changed = whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]

    def read(pack: bytes) -> None:
        table = parse_pack(KEYS, pack, pack_id=bytes(16), key="p")
        for number, offset in enumerate(table.segment_offsets()):
            stored = pack[offset : offset + table.stored[number]]
            cipher = pack_cipher(KEYS, table.id)
            open_segment(cipher, number, stored, table.plain[number])

    read(whole)
    with pytest.raises((IntegrityError, InvalidInput)):
        read(changed)
    with pytest.raises(IntegrityError):
        read(whole[:at])


def test_segments_cannot_change_places() -> None:
    pack = build([[b"a" * 100], [b"b" * 100]])
    cipher = pack_cipher(KEYS, bytes(16))

    with pytest.raises(IntegrityError):
        open_segment(cipher, 0, pack.pieces[2], 100)
    with pytest.raises(IntegrityError):
        open_segment(pack_cipher(KEYS, b"x" * 16), 0, pack.pieces[1], 100)


def test_a_frame_that_promises_too_much_is_not_expanded() -> None:
    bomb = Compressor().shrink(bytes(50 << 20))

    with pytest.raises(IntegrityError, match="another length"):
        expand(bomb, 1000)
    with pytest.raises(IntegrityError):
        expand(b"no frame at all", 1000)


def tables(count: int, blobs: int) -> list[PackTable]:
    chance = random.Random(f"{count} {blobs}")  # noqa: S311 - test data
    made = []
    for number in range(count):
        table = PackTable(id=chance.randbytes(16), kind=number % 2, size=1 << 20)
        for _ in range(3):
            lengths = [chance.randrange(1, 50) for _ in range(blobs)]
            ids = [chance.randbytes(16) for _ in lengths]
            data = bytes(sum(lengths))
            table.add(99, len(data), Segment(data=data, ids=ids, lengths=lengths))
        made.append(table)
    return made


@pytest.mark.parametrize(("packs", "blobs"), [(0, 0), (1, 1), (3, 7), (5, 400)])
def test_an_index_finds_every_blob_and_no_other(packs: int, blobs: int) -> None:
    made = tables(packs, blobs)

    index = Index([IndexTable(encode_index(made))])

    for table in made:
        first = 0
        for number in range(3):
            offset = 0
            for blob_id, length in zip(
                table.ids[first : first + blobs],
                table.lengths[first : first + blobs],
                strict=True,
            ):
                where = index.find(blob_id)
                assert blob_id in index
                assert (where.offset, where.length) == (offset, length)
                assert where.segment.number == number
                assert where.segment.pack.id == table.id
                offset += length
            first += blobs
        assert bytes(15) + b"?" not in index
    with pytest.raises(IntegrityError, match="in no index"):
        index.find(b"?" * 16)


def test_an_index_names_those_that_it_replaces() -> None:
    old = [bytes([n]) * 16 for n in range(3)]

    assert IndexTable(encode_index([], replaces=old)).replaces == frozenset(old)


@settings(max_examples=40, deadline=None)
@given(some.lists(some.binary(min_size=20, max_size=20), max_size=5000))
def test_long_contents_are_cut_and_joined_again(items: list[bytes]) -> None:
    pages = cut_content(items)

    assert [item for page in pages for item in page] == items
    joined = b"".join(items)
    assert len(content_items(joined, 0)) == len(items)
    assert all(len(page) <= 1024 for page in pages)


@pytest.mark.parametrize(
    ("pattern", "path", "directory", "excluded"),
    [
        ("*.tmp", b"a.tmp", False, True),
        ("*.tmp", b"deep/in/a.tmp", False, True),
        ("*.tmp", b"a.tmp2", False, False),
        ("/top", b"top", False, True),
        ("/top", b"below/top", False, False),
        ("cache/", b"cache", True, True),
        ("cache/", b"x/cache", True, True),
        ("cache/", b"cache", False, False),
        ("a/b", b"a/b", False, True),
        ("a/b", b"x/a/b", False, False),
        ("a/*/c", b"a/b/c", False, True),
        ("a/*/c", b"a/b/b/c", False, False),
        ("a/**/c", b"a/c", False, True),
        ("a/**/c", b"a/b/b/c", False, True),
        ("**/c", b"a/b/c", False, True),
        ("logs/**", b"logs/x/y", False, True),
        ("logs/**", b"logs", True, False),
        ("?.txt", b"a.txt", False, True),
        ("?.txt", b"ab.txt", False, False),
        ("a.c", b"abc", False, False),
        ("*", b"with\nnewline \xff", False, True),
    ],
)
def test_exclude_patterns(
    pattern: str, path: bytes, directory: bool, excluded: bool
) -> None:
    assert Exclude([pattern]).matches(path, directory=directory) is excluded


@pytest.mark.parametrize("pattern", ["", "/", "!x", "[ab]", "a\\b", "../x", "a\0b"])
def test_patterns_that_would_be_misread_are_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput):
        Exclude([pattern])


@given(
    some.tuples(*[some.integers(0, 5)] * 6),
)
def test_swapping_owners_is_its_own_inverse(ids: tuple[int, ...]) -> None:
    owners = Owners(local=(ids[0], ids[1]), canonical=(ids[2], ids[3]))

    assert owners.swap(*owners.swap(ids[4], ids[5])) == (ids[4], ids[5])


def test_a_wrong_passphrase_opens_nothing() -> None:
    store = MemoryStore()
    made = new_repository(store)

    with pytest.raises(AccessDenied, match=made.id[:8]):
        Repository.open(store, SecretValue("wrong"))
    with pytest.raises(AccessDenied):
        Repository.create(store, SecretValue("wrong"), cost=CHEAP)
    assert Repository.open(store, SecretValue(KEY)).id == made.id


def test_slots_of_unknown_kinds_are_passed_over() -> None:
    store = MemoryStore()
    new_repository(store)
    body = json.loads(store.get("repository/config").data)
    body["slots"].insert(0, {"kind": "x25519", "anything": [1]})
    body["slots"].insert(0, {"kind": "argon2id", "memory_cost": "broken"})
    store.put("repository/config", json.dumps(body).encode())

    assert Repository.open(store, SecretValue(KEY))


def test_a_slot_costs_no_more_than_a_reader_allows() -> None:
    slot = make_slot(KEYS.master, SecretValue(KEY), CHEAP, label="x")
    config = Config(id=KEYS.repository_id, slots=({**slot, "memory_cost": 1 << 40},))

    with pytest.raises(AccessDenied):
        config.unlock(Derivation(SecretValue(KEY)))
    with pytest.raises(InvalidInput, match="empty"):
        make_slot(KEYS.master, SecretValue(""), CHEAP, label="x")


def test_a_newer_repository_is_refused_with_a_hint() -> None:
    config = Config(id=KEYS.repository_id, slots=()).encode()
    later = config.replace(b'"version": 1', b'"version": 2')

    with pytest.raises(InvalidInput, match="newer version") as refused:
        parse_config(later)
    assert "upgrade" in (refused.value.hint or "")
    assert "newer" in newer("x").message


@settings(max_examples=60)
@given(some.binary(max_size=200))
def test_garbage_for_a_config_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        parse_config(data)


def test_nothing_secret_is_shown() -> None:
    repo = new_repository(MemoryStore())

    for value in (KEYS.master, KEYS.encryption, KEYS.chunk_ids):
        assert repr(value) not in repr(KEYS)
    assert repo.keys.master.hex() not in repr(repo.keys)


def test_objects_of_one_repository_mean_nothing_in_another() -> None:
    other = Keys.from_master(bytes(32))

    assert KEYS.chunk_id(b"x") != other.chunk_id(b"x")
    assert KEYS.chunk_id(b"x") != KEYS.page_id(b"x")
    assert KEYS.agent_tag("ada") != other.agent_tag("ada")
    data = b"".join(build([[b"x"]]).pieces)
    with pytest.raises(IntegrityError):
        parse_pack(other, data, pack_id=bytes(16), key="p")
