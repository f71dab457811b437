"""Made tests/golden/v1, once. It is never made again: later versions must read it.

python tests/golden/make_v1.py NEW_DIRECTORY
"""

import hashlib
import json
import os
import random
import sys
import tempfile
from pathlib import Path

from lobstertrap.redaction import SecretValue
from lobstertrap.repository import Owners, Repository, take_snapshot
from lobstertrap.repository.derivation import ScryptCost
from lobstertrap.repository.keyring import add_key
from lobstertrap.stores.directory import DirectoryStore

PASSPHRASE = "golden"
"""Of a slot of the kind `scrypt`, which was the only one."""

SECOND = "golden too"
"""Of a slot of the kind `argon2id`, added to the same config later."""

NOON = 1_700_000_000


def make_tree(root: Path) -> None:
    """Write a little of everything, the same in every run."""
    chance = random.Random(1)  # noqa: S311 - data, the same in every run
    words = [chance.randbytes(6).hex() for _ in range(300)]
    (root / "memory" / "empty").mkdir(parents=True)
    (root / "memory" / "note.md").write_text("# Golden\n")
    (root / "memory" / "ünïcode ☃").write_text("name")
    (root / "zero").write_bytes(b"")
    (root / "log.jsonl").write_text(" ".join(chance.choices(words, k=30_000)))
    page = "".join(chance.choices(words, k=400)).encode()
    (root / "state.sqlite").write_bytes(b"SQLite format 3\0" + page * 20)
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("memory/note.md")
    (root / "same").hardlink_to(root / "run.sh")
    with (root / "sparse").open("wb") as file:
        file.seek(3_000_000)
        file.write(b"end")
    os.mkfifo(root / "fifo", 0o600)
    raw = os.fsencode(root) + b"/not utf-8 \xff"
    with open(raw, "wb") as file:  # noqa: PTH123 - a name of bytes
        file.write(b"bytes")


def settle(root: Path) -> None:
    """Give everything fixed modes and times."""
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        if not path.is_symlink() and path.name not in ("run.sh", "same", "fifo"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        stamp = NOON * 10**9 + number * 1_000_001
        os.utime(path, ns=(stamp, stamp), follow_symlinks=False)
    root.chmod(0o700)
    os.utime(root, ns=(NOON * 10**9, NOON * 10**9))


def contents(root: Path) -> dict[str, str]:
    """SHA-256 of every file by its path in hex; what `verify` does not do itself."""
    return {
        os.fsencode(p.relative_to(root)).hex(): hashlib.sha256(
            p.read_bytes()
        ).hexdigest()
        for p in root.rglob("*")
        if p.is_file() and not p.is_symlink()
    }


def main(out: Path) -> None:
    """Make a repository with two snapshots and write down what is in them."""
    store = DirectoryStore(out / "bucket")
    repo = Repository.create(
        store, SecretValue(PASSPHRASE), cost=ScryptCost(n=16, r=8, p=1)
    )
    add_key(repo, SecretValue(SECOND), label="second")
    owners = Owners(local=(os.getuid(), os.getgid()), canonical=(1000, 1000))
    expected = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "state"
        root.mkdir()
        make_tree(root)
        for number in range(2):
            settle(root)
            snapshot = take_snapshot(
                repo,
                agent="golden",
                roots={"state": root},
                owners=owners,
                tags={"number": str(number)},
                now=lambda n=number: float(NOON + 3600 * (n + 1)),
            )
            expected.append(
                {
                    "id": snapshot.id,
                    "tree_digest": snapshot.tree_digest,
                    "files": snapshot.files,
                    "contents": contents(root),
                }
            )
            with (root / "log.jsonl").open("a") as log:
                log.write("appended\n")
            (root / "zero").unlink(missing_ok=True)
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
