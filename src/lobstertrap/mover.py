"""The mover: the program beside a volume that takes a snapshot or restores one.

`python -m lobstertrap.mover` reads one line of JSON from its standard input and prints
JSON lines (see lobstertrap.job): progress, then one result or error. It exits with 0 or
1. It can be killed at any moment and run again. With `--stay` it does one request after
another, until the socket that is its standard input is closed.

The engine is imported late: the repository's key is derived beside that.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from lobstertrap import job
from lobstertrap.errors import (
    InvalidInput,
    LobsterTrapError,
    Permanent,
    Unavailable,
)
from lobstertrap.redaction import SecretValue, redactor

if TYPE_CHECKING:
    from lobstertrap.repository import Owners, Repository
    from lobstertrap.repository.derivation import Derivation
    from lobstertrap.stores.base import ObjectStore

PROGRESS_INTERVAL = 0.2
IDLE_SECONDS = 1800.0
"""After so long without a request a mover that stays goes."""
_MAX_REQUEST = 1 << 20
_COLLECT_AFTER = 50_000
"""New objects until cycles are looked for: the engine makes many, and no cycles."""
_MAX_LOCKS = 253  # more the kernel does not pass on at once


class Output:
    """The lines to standard output; progress only a few times a second."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._last: tuple[str, float] = ("", 0.0)

    def progress(self, progress: job.Progress) -> None:
        """Print a progress line unless one was printed just now."""
        phase, at = self._last
        now = time.monotonic()
        if phase == progress.phase and now - at < PROGRESS_INTERVAL:
            return
        self._last = (progress.phase, now)
        self.line(job.progress_line(progress))

    def line(self, text: str) -> None:
        """Print one line at once; when nobody reads any more, nobody waits: end."""
        data = (redactor.redact(text) + "\n").encode()
        try:
            while data:
                data = data[os.write(self._handle, data) :]
        except BrokenPipeError:
            os._exit(1)


def main() -> int:
    """Run one request and return the exit status."""
    gc.set_threshold(_COLLECT_AFTER)
    output = Output(sys.stdout.fileno())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, partial(_stop, output))
    if job.STAY in sys.argv[1:]:
        return _serve(output)
    return int(not _answer(output, lambda: _parse(sys.stdin.readline(_MAX_REQUEST))))


def _serve(output: Output) -> int:
    """Do requests until nobody can ask any more, or nobody has for long."""
    from lobstertrap.repository import (  # noqa: F401, PLC0415 - while nobody waits
        restore,
        take_snapshot,
    )

    with socket.socket(fileno=sys.stdin.fileno()) as asking:
        asking.settimeout(IDLE_SECONDS)
        while True:
            try:
                line, locks = _receive(asking)
            except OSError:
                return 0
            if not line:
                return 0
            if not _answer(output, partial(_parse, line), locks):
                return 1


def _receive(asking: socket.socket) -> tuple[str, list[int]]:
    """Return the next request and the locks that came with it; "" at the end."""
    data, locks = b"", []
    while not data.endswith(b"\n") and len(data) <= _MAX_REQUEST:
        piece, handles, _, _ = socket.recv_fds(asking, 1 << 16, _MAX_LOCKS)
        data += piece
        locks += handles
        if not piece:
            break
    return data.decode("utf-8", "replace"), locks


def _answer(
    output: Output, ask: Callable[[], Mapping[str, Any]], locks: Sequence[int] = ()
) -> bool:
    """Do one request, let the locks go, and print the line that ends it."""
    try:
        try:
            line = job.result_line(run(ask(), output.progress))
        finally:
            for lock in locks:
                os.close(lock)
    except LobsterTrapError as error:
        output.line(job.error_line(error))
    except Exception as error:  # noqa: BLE001, RUF100 - one line, never a traceback
        kind = type(error).__name__
        broken = Permanent(f"the mover failed: {kind}", hint=_where(error))
        output.line(job.error_line(broken))
    else:
        output.line(line)
        return True
    return False


def run(request: Mapping[str, Any], on_progress: job.OnProgress) -> dict[str, Any]:
    """Do what a request says and return the result's fields."""
    asked = _Request(request)
    repo_for = _COMMANDS.get(asked.text("command"))
    if repo_for is None:
        raise InvalidInput(f"the mover has no command '{asked.text('command')}'")
    begun = asked.derivation()  # before the imports: it takes the other core
    from lobstertrap.repository.system import (  # noqa: PLC0415 - as said above
        raise_file_limit,
        translated,
    )

    raise_file_limit()
    with translated():
        return repo_for(asked, begun, on_progress)


def _snapshot(
    asked: _Request, begun: Derivation | None, on_progress: job.OnProgress
) -> dict[str, Any]:
    from lobstertrap.repository import Repository, take_snapshot  # noqa: PLC0415 - late

    started = time.monotonic()
    consistency = asked.text("consistency", "stopped")
    if consistency not in ("stopped", "live"):
        raise InvalidInput(f"consistency is 'stopped' or 'live', not '{consistency}'")
    leaks = asked.text("leaks", "off")
    if leaks not in ("off", "warn", "refuse"):
        raise InvalidInput(f"leaks is 'off', 'warn' or 'refuse', not '{leaks}'")
    repo = asked.unlocked() or Repository.create(
        asked.store(), asked.key(), begun=begun
    )
    snapshot = take_snapshot(
        repo,
        agent=asked.text("agent"),
        roots=asked.roots(),
        owners=asked.owners(),
        exclude=asked.exclude(),
        consistency=consistency,  # type: ignore[arg-type]
        tags=asked.texts("tags"),
        cache_dir=asked.cache_dir(),
        known=asked.known(),
        leaks=leaks,  # type: ignore[arg-type]
        on_progress=on_progress,
    )
    return {
        "snapshot": snapshot.id,
        "tree_digest": snapshot.tree_digest,
        "status": snapshot.status,
        "warnings": list(snapshot.warnings),
        "files": snapshot.files,
        "bytes": snapshot.bytes,
        "new_bytes": snapshot.new_bytes,
        "uploaded_bytes": snapshot.uploaded_bytes,
        "seconds": time.monotonic() - started,
    }


def _restore(
    asked: _Request, begun: Derivation | None, on_progress: job.OnProgress
) -> dict[str, Any]:
    from lobstertrap.repository import restore  # noqa: PLC0415 - late

    repo = asked.opened(begun)
    repo.use_cache(asked.cache_dir())
    snapshot = repo.find(asked.text("snapshot"), asked.text("agent"))
    result = restore(
        repo,
        snapshot,
        roots=asked.roots(),
        owners=asked.owners(),
        delete_extra=asked.flag("delete_extra"),
        in_place=asked.flag("in_place"),
        on_progress=on_progress,
    )
    return {**asdict(result), "warnings": list(result.warnings), "verified": True}


def _plan(
    asked: _Request, begun: Derivation | None, _on_progress: job.OnProgress
) -> dict[str, Any]:
    from lobstertrap.repository.browse import Tree  # noqa: PLC0415 - only when needed
    from lobstertrap.repository.diff import plan_restore  # noqa: PLC0415
    from lobstertrap.repository.planned import planned  # noqa: PLC0415

    repo = asked.opened(begun)
    repo.use_cache(asked.cache_dir())
    tree = Tree(repo, repo.find(asked.text("snapshot"), asked.text("agent")))
    delete = asked.flag("delete_extra")
    return planned(
        plan_restore(tree, asked.roots(), asked.owners(), delete_extra=delete)
    )


_Command = Callable[["_Request", "Derivation | None", job.OnProgress], dict[str, Any]]
_COMMANDS: Mapping[str, _Command]


class _Request:
    """The request's fields, each checked when it is asked for."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        version = fields.get("version")
        if version != job.PROTOCOL_VERSION:
            raise InvalidInput(
                f"the mover speaks version {job.PROTOCOL_VERSION} of the protocol, "
                f"not {version!r}",
                hint="use the same version of lobster trap on both sides",
            )

    def text(self, name: str, default: str | None = None) -> str:
        value = self._fields.get(name, default)
        if not isinstance(value, str):
            raise InvalidInput(f"the request's '{name}' is not a text")
        return value

    def flag(self, name: str) -> bool:
        value = self._fields.get(name, False)
        if not isinstance(value, bool):
            raise InvalidInput(f"the request's '{name}' is not true or false")
        return value

    def texts(self, name: str) -> dict[str, str]:
        values = self._fields.get(name) or {}
        if not isinstance(values, dict) or not all(
            isinstance(v, str) for v in values.values()
        ):
            raise InvalidInput(f"the request's '{name}' is not a map of texts")
        return values

    def roots(self) -> dict[str, Path]:
        paths = {name: Path(path) for name, path in self.texts("volumes").items()}
        if not paths or any("/" in name or not name for name in paths):
            raise InvalidInput("the request's 'volumes' is not a map of names to paths")
        return paths

    def owners(self) -> Owners:
        from lobstertrap.repository import Owners  # noqa: PLC0415 - late

        return Owners(local=self._owner("local_owner"), canonical=self._owner("owner"))

    def _owner(self, name: str) -> tuple[int, int]:
        match self._fields.get(name):
            case [int(uid), int(gid)] if uid >= 0 and gid >= 0:
                return uid, gid
        raise InvalidInput(f"the request's '{name}' is not [uid, gid]")

    def exclude(self) -> dict[str, list[str]]:
        patterns = self._fields.get("exclude") or {}
        if not isinstance(patterns, dict) or not all(
            isinstance(of_one, list) and all(isinstance(p, str) for p in of_one)
            for of_one in patterns.values()
        ):
            raise InvalidInput("the request's 'exclude' is not a map of lists")
        return patterns

    def known(self) -> dict[str, SecretValue]:
        """Return the values to look for in files.

        The redactor is not told of them: none is printed, and a short one would garble
        the lines.
        """
        return {name: SecretValue(v) for name, v in self.texts("secrets").items()}

    def key(self) -> SecretValue:
        key = SecretValue(self.text("key"))
        redactor.add(key)
        return key

    def derivation(self) -> Derivation | None:
        """Begin to derive the key; None when the request has the master key."""
        if "master" in self._fields:
            return None
        from lobstertrap.repository.derivation import Derivation  # noqa: PLC0415 - late

        return Derivation(self.key(), self.cache_dir(), url=self.store().url)

    def opened(self, begun: Derivation | None) -> Repository:
        """Open the repository, with the master key or the passphrase."""
        from lobstertrap.repository import Repository  # noqa: PLC0415 - late

        return self.unlocked() or Repository.open(self.store(), self.key(), begun=begun)

    def unlocked(self) -> Repository | None:
        """Open the repository with the master key, if the request has it."""
        if "master" not in self._fields:
            return None
        master = SecretValue(self.text("master"))
        redactor.add(master)
        try:
            key = bytes.fromhex(master.reveal())
        except ValueError:
            raise InvalidInput("the request's 'master' is not hexadecimal") from None
        from lobstertrap.repository import Repository  # noqa: PLC0415 - late

        return Repository.unlocked(self.store(), key)

    def store(self) -> ObjectStore:
        fields = self._fields.get("store")
        if not isinstance(fields, dict):
            raise InvalidInput("the request's 'store' is not a map")
        return _store_of(json.dumps(fields, sort_keys=True))

    def cache_dir(self) -> Path | None:
        from lobstertrap.repository.cache import user_cache  # noqa: PLC0415 - late

        return user_cache() if self.flag("cache") else None


@lru_cache(maxsize=1)
def _store_of(fields: str) -> ObjectStore:
    """Open a store, or return it again: the next request is mostly to the same one."""
    from lobstertrap.stores import open_store  # noqa: PLC0415 - only when needed
    from lobstertrap.stores.settings import StoreSettings  # noqa: PLC0415

    settings = StoreSettings.from_dict(json.loads(fields))
    for secret in (settings.secret_key, settings.session_token):
        if secret is not None:
            redactor.add(secret)
    return open_store(settings)


_COMMANDS = {"snapshot": _snapshot, "restore": _restore, "plan": _plan}


def _parse(line: str) -> Mapping[str, Any]:
    try:
        request = json.loads(line)
    except ValueError:
        request = None
    if not isinstance(request, dict):
        raise InvalidInput("the mover's standard input is not one line of JSON")
    return request


def _stop(output: Output, number: int, _frame: FrameType | None) -> NoReturn:
    # At once: threads may wait for a store, and whatever is left half-done is a
    # temporary file or an object that nothing refers to.
    output.line(
        job.error_line(
            Unavailable(
                f"the mover was stopped by {signal.Signals(number).name}",
                hint="run the same command again; nothing was lost",
            )
        )
    )
    os._exit(1)


def _where(error: BaseException) -> str:
    """Return the place of a bug without any value in it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "report this"
    name = Path(trace.tb_frame.f_code.co_filename).name
    return f"report this: {name} line {trace.tb_lineno}"


if __name__ == "__main__":
    # Everything is written and on the disk; taking the interpreter apart takes 0.2 s,
    # in which an agent that moves is down.
    os._exit(main())
