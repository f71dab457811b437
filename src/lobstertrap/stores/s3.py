"""A store in a bucket of S3, or of a server that speaks its protocol."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from lobstertrap.errors import IntegrityError, InvalidInput, Unavailable
from lobstertrap.stores.base import ObjectInfo, StoredObject
from lobstertrap.stores.keys import (
    check_condition,
    check_key,
    check_prefix,
    check_range,
)
from lobstertrap.stores.s3_client import ANSWER_SECONDS, body_of, connect
from lobstertrap.stores.s3_errors import Where, translated
from lobstertrap.stores.settings import (
    S3Place,
    StoreSettings,
    check_endpoint,
    parse_url,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_UNSORTED_BUCKETS = "--x-s3"
"""The suffix of AWS directory buckets, which are listed in no order."""


class S3Store:
    """Objects in a bucket below a prefix; every call is one request, tried once.

    Wrap it in `Retrying`. Guarantees are S3's own; whether a server honours conditions
    is asked by `require_conditional_writes`.
    """

    def __init__(
        self, settings: StoreSettings, *, answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        place = parse_url(settings.url)
        if not isinstance(place, S3Place):
            raise InvalidInput(f"not an s3 url: {settings.url!r}")
        self._settings = settings
        self._answer_seconds = answer_seconds
        self._bucket = place.bucket
        self._prefix = f"{place.prefix}/" if place.prefix else ""
        self._endpoint = (
            check_endpoint(settings.endpoint) if settings.endpoint else None
        )
        self._lock = threading.Lock()
        self._connected: S3Client | None = None

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def put(
        self,
        key: str,
        data: bytes | Sequence[bytes],
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Store `data` in one request; the server checks its digest."""
        check_condition(if_absent=if_absent, if_match=if_match)
        condition: dict[str, Any] = {}
        if if_absent:
            condition["IfNoneMatch"] = "*"
        if if_match is not None:
            condition["IfMatch"] = f'"{if_match}"'
        with translated(self._where("writing", key, conditional=bool(condition))):
            answer = self._client().put_object(
                Bucket=self._bucket, Key=self._name(key), **body_of(data), **condition
            )
        return _unquoted(answer["ETag"])

    def get(self, key: str) -> StoredObject:
        """Return the whole object, its length checked."""
        with translated(self._where("reading", key)):
            answer = self._client().get_object(Bucket=self._bucket, Key=self._name(key))
            with closing(answer["Body"]) as body:
                data = body.read()
        self._check_length(key, len(data), answer["ContentLength"])
        return StoredObject(data=data, etag=_unquoted(answer["ETag"]))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return exactly these bytes, from servers that ignore ranges as well."""
        check_range(start, length)
        if length == 0:  # HTTP has no empty range
            if self.head(key).size < start:
                raise self._too_short(key, start)
            return b""
        with translated(self._where("reading", key)):
            answer = self._client().get_object(
                Bucket=self._bucket,
                Key=self._name(key),
                Range=f"bytes={start}-{start + length - 1}",
            )
            with closing(answer["Body"]) as body:
                data = body.read()
        self._check_length(key, len(data), answer["ContentLength"])
        # rclone answers 200 to a range it honours: what counts is Content-Range.
        if "ContentRange" not in answer:
            data = data[start : start + length]
        elif not answer["ContentRange"].startswith(f"bytes {start}-"):
            raise Unavailable(f"{self.url} answered with another range of {key!r}")
        if len(data) != length:
            raise self._too_short(key, start + length)
        return data

    def head(self, key: str) -> ObjectInfo:
        """Return what the server knows of the object."""
        with translated(self._where("looking at", key)):
            answer = self._client().head_object(
                Bucket=self._bucket, Key=self._name(key)
            )
        return ObjectInfo(
            key=key,
            size=answer["ContentLength"],
            etag=_unquoted(answer["ETag"]),
            modified=answer["LastModified"].timestamp(),
        )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects sorted by key.

        AWS sorts, so there each page is passed on as it comes. Other servers may walk
        directories (SeaweedFS lists `a/b` before `a-b`), so theirs are collected and
        sorted first: about 300 bytes of memory for an object.
        """
        check_prefix(prefix)
        found = self._pages(prefix)
        if self._endpoint is None and not self._bucket.endswith(_UNSORTED_BUCKETS):
            return found
        return iter(sorted(found, key=lambda info: info.key))

    def _pages(self, prefix: str) -> Iterator[ObjectInfo]:
        where = self._where("listing")
        with translated(where):
            pages = iter(
                self._client()
                .get_paginator("list_objects_v2")
                .paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
            )
        while True:
            with translated(where):
                page = next(pages, None)
            if page is None:
                return
            for found in page.get("Contents", []):
                yield ObjectInfo(
                    key=found["Key"].removeprefix(self._prefix),
                    size=found["Size"],
                    etag=_unquoted(found["ETag"]),
                    modified=found["LastModified"].timestamp(),
                )

    def delete(self, key: str) -> None:
        """Remove the object; S3 answers alike whether it was there."""
        with translated(self._where("deleting", key)):
            self._client().delete_object(Bucket=self._bucket, Key=self._name(key))

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _where(
        self, doing: str, key: str | None = None, *, conditional: bool = False
    ) -> Where:
        return Where(
            doing=doing,
            key=None if key is None else self._name(key),
            bucket=self._bucket,
            endpoint=self._endpoint or "AWS",
            conditional=conditional,
        )

    def _check_length(self, key: str, got: int, promised: int) -> None:
        if got != promised:
            raise Unavailable(
                f"reading {key!r} of {self.url} ended after {got} of {promised} bytes"
            )

    def _too_short(self, key: str, end: int) -> IntegrityError:
        return IntegrityError(
            f"object {key!r} of {self.url} ends before byte {end}",
            hint="check the repository: the object is shorter than its index says",
        )

    def _client(self) -> S3Client:
        with self._lock:
            if self._connected is None:
                with translated(self._where("opening")):
                    self._connected = connect(self._settings, self._answer_seconds)
            return self._connected


def _unquoted(etag: str) -> str:
    return etag.strip('"')
