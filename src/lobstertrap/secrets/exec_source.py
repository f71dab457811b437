"""A program that answers for secrets: OpenClaw's exec protocol, on stdin and stdout.

It is asked once for all ids: `{"protocolVersion": 1, "provider": NAME, "ids": [...]}`,
and answers `{"protocolVersion": 1, "values": {...}, "errors": {...}}`. Nothing that it
prints is ever shown: any of it may be a secret.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import stat
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lobstertrap.errors import SecretMissing
from lobstertrap.redaction import SecretValue
from lobstertrap.secrets.sources import Found, checked, decoded, each, parsed

PROTOCOL_VERSION: Final = 1
_LARGEST_REQUEST: Final = 256 * 1024
_CODES: Final = ("NOT_FOUND", "AMBIGUOUS_DUPLICATE_KEY")
"""The only part of an answer that may be repeated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecSource:
    """A program of [secrets.providers], run without a shell and with little else."""

    provider: str
    command: Path
    arguments: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    """All that the program gets of the environment."""
    seconds: float = 5.0
    silent_seconds: float = 5.0
    """How long it may print nothing."""
    largest: int = 2**20
    json_only: bool = True
    """Otherwise a single value may be answered as plain text."""
    trusted: Sequence[Path] = ()
    """Directories of which one must hold the program; none: anywhere."""

    def read_all(self, ids: Collection[str]) -> Found:
        """Ask for all ids at once. See `SecretSource`."""
        try:
            self._require_trusted()
            answer = self._answer(self._run(self._request(ids)), ids)
        except SecretMissing as error:
            return dict.fromkeys(ids, error)
        return each(ids, lambda secret_id: self._value(answer, secret_id))

    def _request(self, ids: Collection[str]) -> bytes:
        asked = {
            "protocolVersion": PROTOCOL_VERSION,
            "provider": self.provider,
            "ids": [*ids],
        }
        request = json.dumps(asked, separators=(",", ":")).encode()
        if len(request) > _LARGEST_REQUEST:
            raise SecretMissing(f"more is asked than {_LARGEST_REQUEST} bytes")
        return request

    def _require_trusted(self) -> None:
        path = self.command
        if not path.is_absolute():
            raise SecretMissing(f"the command {path} is not an absolute path")
        try:
            found = path.lstat()
        except OSError as error:
            reason = (error.strerror or "cannot be looked at").lower()
            raise SecretMissing(f"{path}: {reason}") from error
        if stat.S_ISLNK(found.st_mode):
            raise SecretMissing(f"{path} is a symbolic link: name the program itself")
        if not stat.S_ISREG(found.st_mode):
            raise SecretMissing(f"{path} is not a regular file")
        if found.st_mode & 0o022:
            raise SecretMissing(f"{path} can be changed by others: chmod go-w it")
        if found.st_uid not in (os.geteuid(), 0):
            raise SecretMissing(f"{path} belongs to another user")
        real = path.resolve()
        if self.trusted and not any(real.is_relative_to(t) for t in self.trusted):
            raise SecretMissing(f"{path} is outside the provider's trustedDirs")

    def _run(self, request: bytes) -> bytes:
        """Return what the program prints; it is gone when this returns or raises."""
        try:
            program = subprocess.Popen(
                [str(self.command), *self.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self.command.parent,
                env=dict(self.environ),
                start_new_session=True,
            )
        except OSError as error:
            reason = (error.strerror or "it cannot be started").lower()
            raise SecretMissing(f"{self.command}: {reason}") from error
        try:
            end = time.monotonic() + self.seconds
            output = self._converse(program, request, end)
            status = program.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise self._too_late(ended=True) from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            for stream in (program.stdin, program.stdout, program.stderr):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()
            program.wait()
        if status:
            raise SecretMissing(f"{self.command.name} ended with status {status}")
        return output

    def _converse(
        self, program: subprocess.Popen[bytes], request: bytes, end: float
    ) -> bytes:
        """Write the request and read the output, whichever is possible first."""
        assert program.stdin and program.stdout and program.stderr  # noqa: PT018, S101 - for the types: all three are pipes
        silent_end = time.monotonic() + self.silent_seconds
        output, count, left = bytearray(), 0, memoryview(request)
        with selectors.DefaultSelector() as waiting:
            os.set_blocking(program.stdin.fileno(), False)
            waiting.register(program.stdin, selectors.EVENT_WRITE)
            waiting.register(program.stdout, selectors.EVENT_READ)
            waiting.register(program.stderr, selectors.EVENT_READ)
            while waiting.get_map():
                now = time.monotonic()
                if now >= min(end, silent_end):
                    raise self._too_late(ended=now >= end)
                for key, _ in waiting.select(min(end, silent_end) - now):
                    if key.fileobj is program.stdin:
                        left = left[_write(key.fd, left) :]
                        data = bytes(left)
                    else:
                        data = os.read(key.fd, 1 << 16)
                        count += len(data)
                        silent_end = time.monotonic() + self.silent_seconds
                    if not data:
                        waiting.unregister(key.fileobj)
                        if key.fileobj is program.stdin:
                            program.stdin.close()
                    elif key.fileobj is program.stdout:
                        output += data
                    if count > self.largest:
                        raise SecretMissing(
                            f"{self.command.name} printed more than {self.largest} "
                            "bytes"
                        )
        return bytes(output)

    def _too_late(self, *, ended: bool) -> SecretMissing:
        if ended:
            return SecretMissing(
                f"{self.command.name} did not answer within {self.seconds:g} s"
            )
        return SecretMissing(
            f"{self.command.name} printed nothing for {self.silent_seconds:g} s"
        )

    def _answer(self, output: bytes, ids: Collection[str]) -> Mapping[str, Any]:
        name, text = self.command.name, decoded(output)
        if text is None:
            raise SecretMissing(f"the answer of {name} is not UTF-8 text")
        text = text.strip()
        if not text:
            raise SecretMissing(f"{name} answered nothing")
        answer = parsed(text)
        if not self.json_only and len(ids) == 1 and not isinstance(answer, dict):
            plain = answer if isinstance(answer, str) else text
            return {"values": dict.fromkeys(ids, plain)}
        if not isinstance(answer, dict):
            raise SecretMissing(f"the answer of {name} is not a JSON object")
        if answer.get("protocolVersion") != PROTOCOL_VERSION:
            raise SecretMissing(
                f"{name} does not speak protocolVersion {PROTOCOL_VERSION}"
            )
        if not isinstance(answer.get("values"), dict):
            raise SecretMissing(f"the answer of {name} has no values")
        return answer

    def _value(self, answer: Mapping[str, Any], secret_id: str) -> SecretValue:
        errors = answer.get("errors")
        if isinstance(errors, dict) and secret_id in errors:
            error = errors[secret_id]
            code = error.get("code") if isinstance(error, dict) else None
            told = f": {code}" if code in _CODES else ""
            raise SecretMissing(f"{self.command.name} failed for it{told}")
        value = answer["values"].get(secret_id)
        if not isinstance(value, str):
            what = "a value that is no text" if value is not None else "no value"
            raise SecretMissing(f"{self.command.name} answered {what} for it")
        return checked(value, "its value")


def _write(handle: int, data: memoryview) -> int:
    try:
        return os.write(handle, data)
    except BrokenPipeError:  # it answers without having read all; that is allowed
        return len(data)
    except BlockingIOError:
        return 0
