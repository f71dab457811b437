"""The places that a secret's value is read from: the environment, and private files."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from lobstertrap.errors import SecretMissing
from lobstertrap.redaction import SecretValue
from lobstertrap.secret_ref import SINGLE_VALUE

Found = Mapping[str, SecretValue | SecretMissing]
"""By id: the value, or why there is none."""


class SecretSource(Protocol):
    """Where values are; one method, which never puts a value into an error."""

    def read_all(self, ids: Collection[str]) -> Found:
        """Return each id's value, or the reason in place of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvSource:
    """Variables of the environment of the command that runs."""

    environ: Mapping[str, str] = field(repr=False)
    allowed: Collection[str] | None = None
    """The only variables that may be read; None: all."""

    def read(self, secret_id: str) -> SecretValue:
        """Return the variable `secret_id`; one that is empty counts as missing."""
        if self.allowed is not None and secret_id not in self.allowed:
            raise SecretMissing(
                f"the variable {secret_id} is not in the provider's allowlist"
            )
        value = self.environ.get(secret_id)
        if value is None:
            raise SecretMissing(f"the variable {secret_id} is not set")
        return checked(value, f"the variable {secret_id}")

    def read_all(self, ids: Collection[str]) -> Found:
        """Return each variable. See `SecretSource`."""
        return each(ids, self.read)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """A file that only its owner can read: JSON, or one value and nothing else.

    Ids are absolute JSON pointers (RFC 6901), or `value` for a `singleValue` file: the
    rules of OpenClaw, so that one file serves both.
    """

    path: Path
    mode: Literal["json", "singleValue"] = "json"
    seconds: float = 5.0
    """How long the file may take to be read: it may be on a dead network."""
    largest: int = 2**20

    def read(self, secret_id: str) -> SecretValue:
        """Return what `secret_id` points at in the file."""
        found = self.read_all([secret_id])[secret_id]
        if isinstance(found, SecretMissing):
            raise found
        return found

    def read_all(self, ids: Collection[str]) -> Found:
        """Return what each id points at; the file is read once. See `SecretSource`."""
        try:
            text = _within(self.seconds, self._text, f"{self.path} cannot be read")
        except SecretMissing as error:
            return dict.fromkeys(ids, error)
        if self.mode == "singleValue":
            return each(ids, lambda secret_id: self._whole(text, secret_id))
        return each(ids, lambda secret_id: self._part(text, secret_id))

    def _whole(self, text: str, secret_id: str) -> SecretValue:
        if secret_id != SINGLE_VALUE:
            raise SecretMissing(f"the id must be '{SINGLE_VALUE}' for {self.path}")
        return checked(text.removesuffix("\n").removesuffix("\r"), "it")

    def _part(self, text: str, secret_id: str) -> SecretValue:
        if not secret_id.startswith("/"):
            raise SecretMissing("the id must be a JSON pointer: /providers/openai/key")
        document = parsed(text)
        if not isinstance(document, dict):
            raise SecretMissing(f"{self.path} is not a JSON object")
        value = _pointed_at(document, secret_id)
        if not isinstance(value, str):
            what = "nothing" if value is None else "no string"
            raise SecretMissing(f"{what} is at {secret_id} in {self.path}")
        return checked(value, f"{secret_id} in {self.path}")

    def _text(self) -> str:
        # A pipe in place of the file would let the open itself wait for ever.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            if self.path.is_symlink():
                raise SecretMissing(f"{self.path} is a symbolic link")
            with os.fdopen(os.open(self.path, flags), "rb") as file:
                self._require_private(os.fstat(file.fileno()))
                text = decoded(file.read(self.largest + 1))
        except FileNotFoundError:
            raise SecretMissing(f"there is no file {self.path}") from None
        except OSError as error:
            reason = (error.strerror or "unreadable").lower()
            raise SecretMissing(f"{self.path}: {reason}") from error
        if text is None:
            raise SecretMissing(f"{self.path} is not UTF-8 text")
        return text.removeprefix("\ufeff")

    def _require_private(self, found: os.stat_result) -> None:
        path = self.path
        if not stat.S_ISREG(found.st_mode):
            raise SecretMissing(f"{path} is not a regular file")
        if found.st_size > self.largest:
            raise SecretMissing(f"{path} is larger than {self.largest} bytes")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise SecretMissing(f"{path} can be read by others: chmod 600 it")
        if found.st_uid not in (os.geteuid(), 0):
            raise SecretMissing(f"{path} belongs to another user")
        if found.st_nlink > 1:
            raise SecretMissing(f"{path} has another hard link: copy it, and move back")


def each(ids: Iterable[str], read: Callable[[str], SecretValue]) -> Found:
    """Return what `read` gives for each id, its `SecretMissing` in place of a value."""
    found: dict[str, SecretValue | SecretMissing] = {}
    for secret_id in ids:
        try:
            found[secret_id] = read(secret_id)
        except SecretMissing as error:
            found[secret_id] = error
    return found


def checked(value: str, what: str) -> SecretValue:
    """Return the value unless it is one that no target could hold."""
    if not value:
        raise SecretMissing(f"{what} is empty")
    if "\0" in value:
        raise SecretMissing(f"{what} has a NUL character in it")
    return SecretValue(value)


# The exceptions of json and of decode carry the whole text, even as the mere context
# of another exception: these two let none of them out.
def parsed(text: str) -> Any:
    """Return the JSON document, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def decoded(data: bytes) -> str | None:
    """Return the text, or None when it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _within(seconds: float, read: Callable[[], str], what: str) -> str:
    """Return what `read` returns; a read that hangs is left behind, to end or not."""
    done: list[str | SecretMissing] = []

    def run() -> None:
        try:
            done.append(read())
        except SecretMissing as error:
            done.append(error)

    reader = threading.Thread(target=run, daemon=True)
    reader.start()
    reader.join(seconds)
    if not done:
        raise SecretMissing(f"{what} within {seconds:g} s")
    if isinstance(done[0], SecretMissing):
        raise done[0]
    return done[0]


def _pointed_at(document: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict):
            document = document.get(key)
        elif isinstance(document, list) and key.isascii() and key.isdigit():
            document = document[int(key)] if int(key) < len(document) else None
        else:
            return None
    return document
