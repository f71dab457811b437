"""Tally: a tiny agent that counts words, with the state and the manners of a real one.

    GET  /healthz, /readyz   200 when it runs, when its state answers
    GET  /state              what it knows, as one JSON object
    GET  /transcript         every message so far, one JSON object per line
    POST /message            {"text": ..., "delay_ms": 0} -> the reply and its number
    POST /write              {"interval_ms": 20} keeps writing by itself; 0 stops
    POST /grow               {"megabytes": 100} grows the state; half of it compresses

A message is acknowledged when it is in the transcript (fsynced) and in the database
(committed). POST needs `Authorization: Bearer $TALLY_TOKEN`. SIGTERM ends it when the
messages in hand are answered. Only the standard library is used.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import json
import os
import random
import signal
import socket
import sqlite3
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, NoReturn

EXIT_TORN = 65  # sysexits.h EX_DATAERR
EXIT_CONFIG = 78  # sysexits.h EX_CONFIG
MEGABYTE = 2**20
GROWTH_FILE = 8 * MEGABYTE
LONGEST_BODY = MEGABYTE


def give_up(code: int, message: str) -> NoReturn:
    """End with one clear line."""
    print(f"tally: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


class Diary:
    """What must not be lost: a transcript, a database beside it, and a memory file.

    The transcript is written first; after a crash the database is brought up to it. A
    database that knows more than the transcript means that somebody mixed two states.
    """

    def __init__(self, root: Path, epoch: int) -> None:
        self.root = root
        self.epoch = epoch
        self.words = 0
        self.sequence = 0
        self.epochs: list[int] = []
        self._lock = threading.Lock()
        self._transcript = (root / "transcript.jsonl").open("ab", buffering=0)
        self._database = sqlite3.connect(
            root / "tally.sqlite", isolation_level=None, check_same_thread=False
        )
        self._database.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
            "CREATE TABLE IF NOT EXISTS messages"
            " (sequence INTEGER PRIMARY KEY, epoch INTEGER, text TEXT) STRICT;"
        )
        self._recover()
        self._remember()

    def _recover(self) -> None:
        """Drop a torn last line; give the database the lines that it has not."""
        known = self.rows()
        for line in self._whole_lines():
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"sequence": None}
            if entry["sequence"] != self.sequence + 1:
                give_up(EXIT_TORN, f"torn state: no message {self.sequence + 1}")
            self._count(entry)
            if self.sequence > known:
                self._insert(entry)
        if known > self.sequence:
            give_up(
                EXIT_TORN,
                f"torn state: {known} messages in the database,"
                f" {self.sequence} in the transcript",
            )

    def _whole_lines(self) -> list[bytes]:
        lines = self.transcript().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):  # never acknowledged
            self._transcript.truncate(sum(map(len, lines[:-1])))
            lines.pop()
        return lines

    def append(self, text: str) -> dict[str, Any]:
        """Store one message durably and return its entry."""
        with self._lock:
            entry = {
                "sequence": self.sequence + 1,
                "at": time.time(),
                "epoch": self.epoch,
                "host": socket.gethostname(),
                "text": text,
                "reply": f"{self.words + len(text.split())} words so far",
            }
            line = json.dumps(entry).encode() + b"\n"
            end = self._transcript.seek(0, os.SEEK_END)
            try:
                if self._transcript.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._transcript.fileno())
                self._insert(entry)
            except BaseException:  # a full disk, say: as if never asked
                self._transcript.truncate(end)
                raise
            self._count(entry)
            self._remember()
            return entry

    def _insert(self, entry: dict[str, Any]) -> None:
        self._database.execute(
            "INSERT INTO messages VALUES (:sequence, :epoch, :text)", entry
        )

    def _count(self, entry: dict[str, Any]) -> None:
        self.sequence = entry["sequence"]
        self.words += len(entry["text"].split())
        if not self.epochs or self.epochs[-1] != entry["epoch"]:
            self.epochs.append(entry["epoch"])

    def _remember(self) -> None:
        fresh = self.root / "memory.md.new"
        fresh.write_text(f"# Memory\n\n{self.sequence} messages, {self.words} words\n")
        fresh.replace(self.root / "memory.md")

    def rows(self) -> int:
        """Ask the database how many messages it has."""
        count = self._database.execute("SELECT count(*) FROM messages").fetchone()
        return int(count[0])

    def transcript(self) -> bytes:
        """Return the whole transcript."""
        with self._lock:
            return (self.root / "transcript.jsonl").read_bytes()


def furnish(root: Path) -> None:
    """Make what a real workspace has and a careless copy loses; only what is missing.

    Links of every kind, an executable, names that are not ASCII, an empty directory, a
    second name for one file, an extended attribute, and things not worth moving.
    """
    workspace = root / "workspace"
    for name in ("bin", "notes/日本語", "notes/empty", "links", "private"):
        (workspace / name).mkdir(parents=True, exist_ok=True)
    (workspace / "private").chmod(0o700)
    _write(workspace / "bin" / "greet.sh", "#!/bin/sh\necho hello\n", 0o755)
    _write(workspace / "notes" / "日本語" / "naïve café.txt", "ünïcödé\n", 0o644)
    _write(workspace / "private" / "diary.txt", "nobody else reads this\n", 0o600)
    _write(workspace / "notes" / "one.txt", "two names, one file\n", 0o640)
    second = workspace / "notes" / "two.txt"
    if not second.exists():
        second.hardlink_to(workspace / "notes" / "one.txt")
    for name, there in (
        ("relative", "../notes/one.txt"),
        ("absolute", str(root / "memory.md")),
        ("dangling", "../nowhere/at all"),
    ):
        if not (workspace / "links" / name).is_symlink():
            (workspace / "links" / name).symlink_to(there)
    with contextlib.suppress(OSError, AttributeError):  # not every file system can
        os.setxattr(second, "user.tally", b"an extended attribute\x00\xff")
    (root / "cache").mkdir(exist_ok=True)
    (root / "cache" / "regenerable.bin").write_bytes(b"\0" * 4096)
    (root / "tally.pid").write_text(f"{os.getpid()}\n")


def _write(path: Path, text: str, mode: int) -> None:
    if not path.exists():
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)


def grow(root: Path, megabytes: int) -> int:
    """Bring `archive/` to `megabytes`, half random and half text; return its bytes."""
    archive = root / "archive"
    archive.mkdir(exist_ok=True)
    size = sum(file.stat().st_size for file in archive.iterdir())
    while size < megabytes * MEGABYTE:
        length = min(GROWTH_FILE, megabytes * MEGABYTE - size)
        with (archive / f"{size:015d}.bin").open("wb") as file:
            for _ in range(length // MEGABYTE):
                file.write(random.randbytes(MEGABYTE // 2))  # noqa: S311 (ballast)
                words = f"{random.getrandbits(64)} lobsters tally words ".encode()
                text = words * (MEGABYTE // 2 // len(words) + 1)
                file.write(text[: MEGABYTE // 2])
            file.flush()
            os.fsync(file.fileno())
        size += length
    return size


class Writer:
    """Writes a message every so often by itself, until it is told to stop."""

    def __init__(self, diary: Diary) -> None:
        self._diary = diary
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.interval_ms = 0

    def set(self, interval_ms: int) -> None:
        """Write every `interval_ms`; 0 returns when the last message is stored."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        self._thread, self.interval_ms = None, interval_ms
        if interval_ms:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._stop,))
            self._thread.start()

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(self.interval_ms / 1000):
            self._diary.append("written by myself")


class Agent(ThreadingHTTPServer):
    """The server with its state; `server_close` waits for the messages in hand."""

    daemon_threads = False

    def __init__(self, address: tuple[str, int], root: Path, token: str) -> None:
        self.epoch = int(os.environ.get("LOBSTERTRAP_EPOCH", "0"))
        self.token = token
        super().__init__(address, Handler)  # a taken port must not touch the state
        self.diary = Diary(root, self.epoch)
        self.writer = Writer(self.diary)
        self.growing = threading.Lock()
        furnish(root)

    def state(self) -> dict[str, Any]:
        """Say what is known, and whether transcript and database agree."""
        transcript = self.diary.transcript()
        return {
            "agent": "tally",
            "epoch": self.epoch,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "messages": transcript.count(b"\n"),
            "rows": self.diary.rows(),
            "words": self.diary.words,
            "epochs": self.diary.epochs,
            "transcript_sha256": hashlib.sha256(transcript).hexdigest(),
            "interval_ms": self.writer.interval_ms,
        }


class Handler(BaseHTTPRequestHandler):
    """One request; HTTP/1.0 closes the connection, so a stop never waits for one."""

    server: Agent
    timeout = 5
    posts: ClassVar[dict[str, str]] = {
        "/message": "message",
        "/write": "write",
        "/grow": "grow",
    }

    def do_GET(self) -> None:
        """Answer probes and questions; they need no token."""
        if self.path == "/healthz":
            self.answer(HTTPStatus.OK, {"ok": True})
        elif self.path == "/readyz":
            self.answer(HTTPStatus.OK, {"ready": self.server.diary.rows() >= 0})
        elif self.path == "/state":
            self.answer(HTTPStatus.OK, self.server.state())
        elif self.path == "/transcript":
            self.send(HTTPStatus.OK, self.server.diary.transcript())
        else:
            self.answer(HTTPStatus.NOT_FOUND, {"error": f"no such path: {self.path}"})

    def do_POST(self) -> None:
        """Change the state; the token is asked for first."""
        given = self.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self.server.token}".encode()):
            self.answer(HTTPStatus.UNAUTHORIZED, {"error": "wrong or missing token"})
            return
        if self.path not in self.posts:
            self.answer(HTTPStatus.NOT_FOUND, {"error": f"no such path: {self.path}"})
            return
        try:
            length = min(int(self.headers.get("Content-Length", 0)), LONGEST_BODY)
            body = json.loads(self.rfile.read(length))
            self.answer(HTTPStatus.OK, getattr(self, self.posts[self.path])(body))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self.answer(HTTPStatus.BAD_REQUEST, {"error": f"bad request: {error!r}"})
        except (OSError, sqlite3.Error) as error:
            self.answer(HTTPStatus.INSUFFICIENT_STORAGE, {"error": str(error)})

    def message(self, body: dict[str, Any]) -> dict[str, Any]:
        """Think for `delay_ms`, then store the message and reply."""
        time.sleep(body.get("delay_ms", 0) / 1000)
        return self.server.diary.append(str(body["text"]))

    def write(self, body: dict[str, Any]) -> dict[str, Any]:
        """Start or stop the writer."""
        with self.server.growing:
            self.server.writer.set(int(body["interval_ms"]))
        return {"interval_ms": self.server.writer.interval_ms}

    def grow(self, body: dict[str, Any]) -> dict[str, Any]:
        """Grow the state; one at a time."""
        with self.server.growing:
            return {"bytes": grow(self.server.diary.root, int(body["megabytes"]))}

    def answer(self, status: HTTPStatus, body: dict[str, Any]) -> None:
        """Send a JSON object."""
        self.send(status, json.dumps(body).encode() + b"\n")

    def send(self, status: HTTPStatus, body: bytes) -> None:
        """Send bytes; a client that went away is its own affair."""
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay silent: probes would fill the log."""


def main() -> NoReturn:
    """Run until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    token = os.environ.pop("TALLY_TOKEN", "")
    if not token:
        give_up(EXIT_CONFIG, "TALLY_TOKEN is not set; it is the secret that POST needs")
    root = Path(os.environ.get("TALLY_STATE", "state")).absolute()
    # In a container every interface is the container's own; on a host it is not.
    inside = "container" in os.environ or "KUBERNETES_SERVICE_HOST" in os.environ
    bind = os.environ.get("TALLY_BIND") or ("0.0.0.0" if inside else "127.0.0.1")  # noqa: S104
    address = (bind, int(os.environ.get("TALLY_PORT", "8080")))
    try:
        root.mkdir(parents=True, exist_ok=True)
        agent = Agent(address, root, token)
    except (OSError, sqlite3.Error) as error:
        give_up(1, f"cannot start on {address[0]}:{address[1]} in {root}: {error}")
    print(f"tally: ready on port {agent.server_port}, epoch {agent.epoch}", flush=True)
    threading.Thread(target=agent.serve_forever, args=(0.05,), daemon=True).start()
    # Again and again: a signal that came while all was suspended may be handed to
    # another thread, and then nothing wakes this one, which runs Python's handlers.
    while not stop.wait(0.5):
        pass
    print("tally: stopping", flush=True)
    agent.shutdown()
    agent.server_close()
    agent.writer.set(0)
    print(f"tally: stopped after message {agent.diary.sequence}", flush=True)
    # Closing the database would empty its write-ahead log. Real agents often leave one
    # behind, and a snapshot has to carry it: leave it.
    os._exit(0)


if __name__ == "__main__":
    main()
