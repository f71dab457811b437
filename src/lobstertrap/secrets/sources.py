"""The places that a secret's value is read from: the environment, and private files."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from lobstertrap.errors import SecretMissing
from lobstertrap.redaction import SecretValue

SINGLE_VALUE = "value"
"""The only id that a `singleValue` file has."""
_LARGEST_FILE = 2**20


class SecretSource(Protocol):
    """Where values are; one method, which never puts a value into an error."""

    def read(self, secret_id: str) -> SecretValue:
        """Return the value; raises `SecretMissing` with the reason, without names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvSource:
    """Variables of the environment of the command that runs."""

    environ: Mapping[str, str] = field(repr=False)

    def read(self, secret_id: str) -> SecretValue:
        """Return the variable `secret_id`; one that is empty counts as missing."""
        value = self.environ.get(secret_id)
        if value is None:
            raise SecretMissing(f"the variable {secret_id} is not set")
        return _checked(value, f"the variable {secret_id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """A file that only its owner can read: JSON, or one value and nothing else.

    Ids are absolute JSON pointers (RFC 6901), or `value` for a `singleValue` file: the
    rules of OpenClaw, so that one file serves both.
    """

    path: Path
    mode: Literal["json", "singleValue"] = "json"

    def read(self, secret_id: str) -> SecretValue:
        """Return what `secret_id` points at in the file."""
        if self.mode == "singleValue":
            if secret_id != SINGLE_VALUE:
                raise SecretMissing(f"the id must be '{SINGLE_VALUE}' for {self.path}")
            return _checked(self._text().removesuffix("\n").removesuffix("\r"), "it")
        if not secret_id.startswith("/"):
            raise SecretMissing("the id must be a JSON pointer: /providers/openai/key")
        document = _parsed(self._text())
        if document is None:
            raise SecretMissing(f"{self.path} is not JSON")
        value = _pointed_at(document, secret_id)
        if not isinstance(value, str):
            what = "nothing" if value is None else "no string"
            raise SecretMissing(f"{what} is at {secret_id} in {self.path}")
        return _checked(value, f"{secret_id} in {self.path}")

    def _text(self) -> str:
        try:
            with self.path.open("rb") as file:
                _require_private(self.path, os.fstat(file.fileno()))
                text = _decoded(file.read(_LARGEST_FILE))
        except FileNotFoundError:
            raise SecretMissing(f"there is no file {self.path}") from None
        except OSError as error:
            reason = (error.strerror or "unreadable").lower()
            raise SecretMissing(f"{self.path}: {reason}") from error
        if text is None:
            raise SecretMissing(f"{self.path} is not UTF-8 text")
        return text


# The exceptions of json and of decode carry the whole text, even as the mere context
# of another exception: these two let none of them out.
def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _require_private(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise SecretMissing(f"{path} is not a regular file")
    if found.st_size > _LARGEST_FILE:
        raise SecretMissing(f"{path} is larger than {_LARGEST_FILE} bytes")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise SecretMissing(f"{path} can be read by others: chmod 600 it")
    if found.st_uid not in (os.geteuid(), 0):
        raise SecretMissing(f"{path} belongs to another user")


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


def _checked(value: str, what: str) -> SecretValue:
    if not value:
        raise SecretMissing(f"{what} is empty")
    if "\0" in value:
        raise SecretMissing(f"{what} has a NUL character in it")
    return SecretValue(value)
