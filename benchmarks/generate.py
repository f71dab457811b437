"""Seeded data for measurements: volumes like those that agents really have.

    python benchmarks/generate.py make agent DIR [--scale 1.0]
    python benchmarks/generate.py change agent DIR

Sets: `agent` (text, JSONL, SQLite, node_modules, a git-like object store; 42,000
files, 1.2 GB at scale 1), `small` (100,000 files of 0.5-8 KB), `big` (one file of
2 GB, half of it incompressible). `change` edits 1% of the files and appends to every
SQLite database and JSONL file.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path

SEED = 20_260_101
LARGE = 1 << 20
EDITED = 0.01


class Text:
    """Words with the frequencies of real text; zstd makes about a third of it."""

    def __init__(self, chance: random.Random) -> None:
        letters = "etaoinshrdlucmfwypvbgkjqxz"
        weights = [26 - n for n in range(26)]
        self._chance = chance
        words = [
            "".join(chance.choices(letters, weights, k=chance.randint(2, 10)))
            for _ in range(6000)
        ]
        self._words = words
        self._weights = [1 / (n + 3) for n in range(len(words))]
        self._pool = " ".join(chance.choices(words, self._weights, k=400_000))

    def some(self, size: int) -> str:
        """Return about `size` characters, seldom the same ones twice."""
        chance, pool = self._chance, self._pool
        parts = []
        left = size
        while left > 0:
            step = min(left, chance.randint(40, 400))
            start = chance.randrange(len(pool) - step)
            parts.append(pool[start : start + step])
            left -= step
        return "\n".join(parts)[:size]


def make_small(root: Path, chance: random.Random, scale: float) -> None:
    """Write many small files."""
    text = Text(chance)
    for number in range(int(100_000 * scale)):
        folder = root / f"{number // 1000:03d}" / f"{number // 50 % 20:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"note-{number}.md").write_text(text.some(chance.randint(500, 8000)))


def make_big(root: Path, chance: random.Random, scale: float) -> None:
    """Write one large file, half of it incompressible."""
    text = Text(chance)
    with (root / "big.bin").open("wb") as file:
        for _ in range(int(1000 * scale)):
            file.write(chance.randbytes(LARGE))
            file.write(text.some(LARGE).encode())


def make_agent(root: Path, chance: random.Random, scale: float) -> None:
    """Write what an agent keeps."""
    text = Text(chance)
    _make_modules(root / "workspace" / "node_modules", chance, text, int(700 * scale))
    _make_objects(root / "workspace" / ".git" / "objects", chance, text, scale)
    for number in range(int(2000 * scale)):
        folder = root / "memory" / f"{number % 40:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.md").write_text(text.some(chance.randint(200, 20_000)))
    for number in range(int(60 * scale) + 1):
        folder = root / "sessions"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{number}.jsonl").open("w") as file:
            for turn in range(chance.randint(200, 2000)):
                file.write(_turn(turn, text, chance))
    for number, megabytes in enumerate((300, 120, 80, 50)):
        folder = root / "state"
        folder.mkdir(parents=True, exist_ok=True)
        size = int(megabytes * scale) << 20
        _make_database(folder / f"{number}.sqlite", text, chance, size)


def _make_modules(root: Path, chance: random.Random, text: Text, packages: int) -> None:
    for package in range(packages):
        folder = root / f"package-{package}" / "lib"
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / "package.json").write_text(
            json.dumps({"name": f"package-{package}", "description": text.some(300)})
        )
        for number in range(chance.randint(20, 80)):
            size = int(chance.paretovariate(1.1) * 700)
            (folder / f"{number}.js").write_text(text.some(min(size, 200_000)))


def _make_objects(root: Path, chance: random.Random, text: Text, scale: float) -> None:
    for number in range(int(5000 * scale)):
        folder = root / f"{number % 256:02x}"
        folder.mkdir(parents=True, exist_ok=True)
        data = zlib.compress(text.some(chance.randint(500, 20_000)).encode())
        (folder / f"{chance.getrandbits(152):038x}").write_bytes(data)
    pack = root / "pack"
    pack.mkdir(parents=True)
    for number in range(4):
        (pack / f"pack-{number}.pack").write_bytes(
            chance.randbytes(int(60 * LARGE * scale))
        )


def _turn(number: int, text: Text, chance: random.Random) -> str:
    return (
        json.dumps(
            {
                "id": chance.getrandbits(64),
                "turn": number,
                "role": "user" if number % 2 else "assistant",
                "content": text.some(chance.randint(50, 1500)),
            }
        )
        + "\n"
    )


def _make_database(path: Path, text: Text, chance: random.Random, size: int) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA synchronous=OFF")
    database.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, k TEXT, body TEXT)")
    database.execute("CREATE INDEX by_k ON events (k)")
    _fill(database, text, chance, size)
    database.close()


def _fill(
    database: sqlite3.Connection, text: Text, chance: random.Random, size: int
) -> None:
    done = 0
    while done < size:
        body = text.some(chance.randint(100, 3000))
        database.execute(
            "INSERT INTO events (k, body) VALUES (?, ?)",
            (f"{chance.getrandbits(64):x}", body),
        )
        done += int(len(body) * 1.1) + 60
    database.commit()


def change(root: Path, chance: random.Random) -> None:
    """Edit 1% of the files, append to every JSONL file and SQLite database."""
    text = Text(chance)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        if path.suffix == ".sqlite":
            database = sqlite3.connect(path)
            database.execute("PRAGMA synchronous=OFF")
            _fill(database, text, chance, path.stat().st_size // 200)
            database.execute("UPDATE events SET body = body || '.' WHERE id % 997 = 0")
            database.commit()
            database.close()
        elif path.suffix == ".jsonl":
            with path.open("a") as file:
                file.write(_turn(9, text, chance))
        elif path.stat().st_size >= 100 * LARGE:
            _edit_inside(path, chance)
        elif chance.random() < EDITED:
            path.write_text(text.some(max(500, path.stat().st_size)))


def _edit_inside(path: Path, chance: random.Random) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        for _ in range(max(1, size // LARGE // 100)):
            file.seek(chance.randrange(size - LARGE))
            file.write(chance.randbytes(LARGE))


SETS: dict[str, Callable[[Path, random.Random, float], None]] = {
    "agent": make_agent,
    "small": make_small,
    "big": make_big,
}


def main() -> None:
    """Make or change one set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("make", "change"))
    parser.add_argument("set", choices=SETS)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    asked = parser.parse_args()
    if asked.action == "make":
        asked.directory.mkdir(parents=True)
        SETS[asked.set](asked.directory, random.Random(SEED), asked.scale)
    else:
        change(asked.directory, random.Random(SEED + 1))


if __name__ == "__main__":
    main()
