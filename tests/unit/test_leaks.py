"""Secrets in the files of a volume: found while they are read, told by path."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from lobstertrap.errors import NotFound, Refused
from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Owners, Repository, Snapshot, take_snapshot
from lobstertrap.repository.leaks import MOST_TEXT, SEARCH_ENDED, LeakCheck
from lobstertrap.stores.memory import MemoryStore

VALUE = "hunter2-and-much-more"
OWNER = (os.getuid(), os.getgid())
# In pieces, or whoever looks for tokens in this repository finds them.
TOKENS = {
    "sk-" + "ant-api03-" + "Ab1_" * 8: "an API key (sk-...)",
    "sk-" + "or-v1-" + "0f" * 16: "an API key (sk-...)",
    "AIza" + "SyA-b_" + "c1" * 15: "a Google API key",
    "AKIA" + "IOSFODNN7EXAMPLE": "an AWS access key",
    "ghp_" + "aB3d" * 9: "a GitHub token",
    "github_pat_" + "11AAAA_" + "b2" * 12: "a GitHub token",
    "xoxb-" + "123456789012-abcdef": "a Slack token",
    "123456789" + ":AA" + "h-_" * 11: "a Telegram bot token",
    "-----BEGIN " + "OPENSSH PRIVATE KEY-----": "a private key",
}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume"


@pytest.fixture
def repo() -> Repository:
    return Repository.create(MemoryStore(), SecretValue("a passphrase"))


def snap(repo: Repository, volume: Path, **fields: object) -> Snapshot:
    fields = {"leaks": "warn", "known": {"TOKEN": SecretValue(VALUE)}, **fields}
    return take_snapshot(
        repo,
        agent="ada",
        roots={"state": volume},
        owners=Owners(local=OWNER, canonical=OWNER),
        **fields,
    )


def finds(files: Mapping[str, bytes], **known: str) -> list[tuple[str, str]]:
    values = {name: SecretValue(value) for name, value in known.items()}
    check = LeakCheck(values, lambda _, __: None)
    for path, data in files.items():
        check.look(path.encode(), data)
    return [(path.decode(), what) for path, what in check.found]


def test_a_value_is_found_in_small_and_large_files_and_across_pieces(
    repo: Repository, volume: Path
) -> None:
    value = VALUE.encode()
    big = bytearray(9 << 20)
    big[(4 << 20) - 5 : (4 << 20) - 5 + len(value)] = value
    files = {
        "config.json": json.dumps({"token": VALUE}).encode(),
        "middle.bin": os.urandom(100_000) + value + os.urandom(50_000),
        "state.sqlite": b"SQLite format 3\0" + os.urandom(200_000) + value,
        "big.bin": bytes(big),
        "clean.txt": value[:-1],
    }
    for name, data in files.items():
        (volume / name).write_bytes(data)

    taken = snap(repo, volume)

    assert sorted(taken.warnings) == [
        f"'state/{name}' holds the value of secret TOKEN"
        for name in ("big.bin", "config.json", "middle.bin", "state.sqlite")
    ]
    assert taken.status == "complete_with_warnings"
    assert VALUE not in repr(taken)


@pytest.mark.parametrize("end", range(1, len(VALUE)))
def test_a_value_is_found_wherever_pieces_meet(end: int) -> None:
    data = memoryview(b"before" + VALUE.encode() + b"after")
    check = LeakCheck({"TOKEN": SecretValue(VALUE)}, lambda _, __: None)

    watch = check.watch(b"f", len(data))
    watch(data[: 6 + end])
    watch(data[6 + end :])

    assert check.found == [(b"f", "holds the value of secret TOKEN")]


@pytest.mark.parametrize(("token", "what"), TOKENS.items())
def test_a_token_is_known_by_its_shape(token: str, what: str) -> None:
    data = f'{{"key": "{token}"}}\n'.encode()

    assert finds({"a": data}) == [("a", f"holds what looks like {what}")]


@pytest.mark.parametrize(
    "text",
    [
        "task-management-and-other-long-words-with-dashes",
        "sk-short",
        "AKIAIOSFODNN",
        "ghp_short",
        "10:AAaa",
        "-----BEGIN PUBLIC KEY-----",
        "desk-" + "a" * 30,
    ],
)
def test_what_only_resembles_a_token_is_none(text: str) -> None:
    assert finds({"a": text.encode()}) == []


def test_tokens_are_not_looked_for_in_what_others_wrote_nor_in_binaries() -> None:
    token = next(iter(TOKENS)).encode()

    assert (
        finds(
            {
                "state/node_modules/x/README.md": token,
                "state/lib/site-packages/x.py": token,
                "state/image": b"\0" + token,
            }
        )
        == []
    )
    assert len(finds({"state/notes": token})) == 1


def test_the_search_for_tokens_ends_after_so_much_text() -> None:
    token, filler = next(iter(TOKENS)).encode(), b"x" * (1 << 20)
    files = {f"{n:02}": filler for n in range(MOST_TEXT >> 20)}

    found = finds({**files, "zz": token + VALUE.encode()}, TOKEN=VALUE)

    assert found == [("zz", "holds the value of secret TOKEN")]


def test_a_snapshot_says_that_the_search_for_tokens_ended(
    repo: Repository, volume: Path
) -> None:
    token = next(iter(TOKENS)).encode()
    for number in range(MOST_TEXT >> 20):
        (volume / f"{number:02}").write_bytes(b"x" * (1 << 20))
    enough = snap(repo, volume)
    for number in range(MOST_TEXT >> 20):
        (volume / f"{number:02}").write_bytes(b"y" * (1 << 20))
    (volume / "zy").write_bytes(b"\0" + token)
    (volume / "zz").write_bytes(token + VALUE.encode())
    (volume / "zzz").write_bytes(token)

    more = snap(repo, volume)

    assert enough.warnings == ()
    assert sorted(more.warnings) == [
        "'state/zz' holds the value of secret TOKEN",
        SEARCH_ENDED,
    ]


def test_a_short_value_is_not_looked_for() -> None:
    assert finds({"a": b"the cat"}, SHORT="the") == []


def test_a_leak_is_told_every_time_until_it_is_gone(
    repo: Repository, volume: Path
) -> None:
    told = ("'state/env' holds the value of secret TOKEN",)
    (volume / "env").write_text(VALUE)
    (volume / "other").write_text("nothing")
    os.utime(volume / "env", (1, 1))

    first, second = snap(repo, volume), snap(repo, volume)
    (volume / "env").write_text("taken out")
    third = snap(repo, volume)

    assert first.warnings == second.warnings == told
    assert second.new_bytes == 0
    assert (third.warnings, third.status) == ((), "complete")


def test_a_refusal_leaves_no_snapshot(repo: Repository, volume: Path) -> None:
    (volume / "env").write_text(VALUE)

    with pytest.raises(Refused, match="state/env' holds the value of secret") as told:
        snap(repo, volume, leaks="refuse")

    assert VALUE not in f"{told.value} {told.value.hint}"
    assert repo.snapshots() == []
    with pytest.raises(NotFound):
        repo.find("latest", "ada")


def test_a_refusal_names_only_the_first_of_many(repo: Repository, volume: Path) -> None:
    for number in range(30):
        (volume / f"{number:02}").write_text(VALUE)

    with pytest.raises(Refused) as told:
        snap(repo, volume, leaks="refuse")

    assert "state/19' holds" in told.value.message
    assert "state/20'" not in told.value.message
    assert "and 10 more" in told.value.message


def test_nothing_is_looked_for_when_it_is_off(repo: Repository, volume: Path) -> None:
    (volume / "env").write_text(VALUE + next(iter(TOKENS)))

    assert snap(repo, volume, leaks="off").warnings == ()


def test_a_live_snapshot_looks_too(repo: Repository, volume: Path) -> None:
    (volume / "a.sqlite").write_bytes(b"SQLite format 3\0" + VALUE.encode())
    (volume / "a.sqlite-wal").write_bytes(b"x" * 40)

    taken = snap(repo, volume, consistency="live")

    assert "'state/a.sqlite' holds the value of secret TOKEN" in taken.warnings
