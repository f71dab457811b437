"""What is needed to open a store: `StoreSettings`, and the parts of its url."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import SplitResult, unquote, urlsplit

from lobstertrap.errors import InvalidInput
from lobstertrap.redaction import SecretValue
from lobstertrap.stores.keys import check_key

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_PLAIN = ("url", "endpoint", "region")
_SECRET = ("access_key", "secret_key", "session_token")
_URL_HINT = "write s3://bucket/prefix or file:///absolute/path"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """All that is needed to open one store; without keys boto3's chain finds them."""

    url: str
    """`s3://bucket/prefix` or `file:///absolute/path`; never with credentials."""
    endpoint: str | None = None
    """`http://host:port` of an S3-compatible server; None for AWS itself."""
    region: str | None = None
    access_key: SecretValue | None = field(default=None, compare=False)
    secret_key: SecretValue | None = field(default=None, compare=False)
    session_token: SecretValue | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Refuse half a credential: boto3 would sign with what is not there."""
        if (self.access_key is None) != (self.secret_key is None):
            raise InvalidInput(
                f"half a credential for {_without_user(self.url)}",
                hint="give access_key and secret_key, or neither",
            )

    def to_dict(self) -> dict[str, str]:
        """Return plain values, secrets too: only for a mover's standard input."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        secret = {
            name: value.reveal()
            for name in _SECRET
            if (value := getattr(self, name)) is not None
        }
        return {k: v for k, v in plain.items() if v is not None} | secret

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the settings that `to_dict` was called on.

        Raises `InvalidInput` for a field that is unknown, missing or not a string;
        the values themselves are not repeated, since some are secret.
        """
        unknown = sorted(set(values) - {*_PLAIN, *_SECRET})
        wrong = sorted(
            name
            for name, value in values.items()
            if name not in unknown and value is not None and not isinstance(value, str)
        )
        if unknown or wrong or not values.get("url"):
            raise InvalidInput(
                "store settings are not valid: "
                f"unknown {unknown}, not a string {wrong}, url given: "
                f"{bool(values.get('url'))}",
                hint=f"give url and any of {', '.join((*_PLAIN[1:], *_SECRET))}",
            )
        given: dict[str, Any] = {k: v for k, v in values.items() if v is not None}
        for name in set(_SECRET) & set(given):
            given[name] = SecretValue(given[name])
        return cls(**given)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Place:
    """A bucket, and the prefix in it below which all our keys are ('' or 'a/b')."""

    bucket: str
    prefix: str


def parse_url(url: str) -> S3Place | Path:
    """Return where `url` points: a bucket and prefix, or an absolute directory.

    Raises `InvalidInput` for everything else.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidInput("the store's url is malformed", hint=_URL_HINT) from error
    if "@" in parts.netloc:
        raise InvalidInput(
            "the store's url holds credentials",
            hint="take them out of the url; they come from the environment",
        )
    if parts.scheme == "s3":
        return _s3_place(url, parts)
    if parts.scheme == "file":
        return _directory(url, parts)
    raise InvalidInput(f"not a store's url: {url!r}", hint=_URL_HINT)


def check_endpoint(endpoint: str) -> str:
    """Return `endpoint`; raises `InvalidInput` unless it is a plain http(s) address."""
    try:
        parts = urlsplit(endpoint)
        valid = (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and "@" not in parts.netloc
            and not (parts.query or parts.fragment)
        )
        _ = parts.port  # raises for one that is no number
    except ValueError:
        valid = False
    if not valid:
        raise InvalidInput(
            "the store's endpoint is not an address without credentials",
            hint="write https://host:port",
        )
    return endpoint


def _without_user(url: str) -> str:
    return re.sub(r"//[^/]*@", "//", url)


def _s3_place(url: str, parts: SplitResult) -> S3Place:
    prefix = parts.path.strip("/")
    if parts.query or parts.fragment or _BUCKET.fullmatch(parts.netloc) is None:
        raise InvalidInput(f"not a bucket and prefix: {url!r}", hint=_URL_HINT)
    if prefix:
        check_key(prefix)
    return S3Place(bucket=parts.netloc, prefix=prefix)


def _directory(url: str, parts: SplitResult) -> Path:
    path = unquote(parts.path)
    elsewhere = parts.netloc not in {"", "localhost"}
    if elsewhere or parts.query or parts.fragment or not path.startswith("/"):
        raise InvalidInput(f"not an absolute path: {url!r}", hint=_URL_HINT)
    if ".." in PurePosixPath(path).parts or "\0" in path:
        raise InvalidInput(f"a store's path may not hold '..': {url!r}", hint=_URL_HINT)
    return Path(path)
