"""How boto3 is asked: the client's configuration, credentials, and bodies of a put."""

from __future__ import annotations

import base64
import hashlib
import io
import ipaddress
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lobstertrap.errors import AccessDenied, InvalidInput
from lobstertrap.redaction import SecretValue
from lobstertrap.stores.keys import as_buffers, size_of
from lobstertrap.stores.settings import StoreSettings, check_endpoint

if TYPE_CHECKING:
    from boto3.session import Session
    from mypy_boto3_s3 import S3Client

SMALL = 64 * 1024
"""Bytes up to which a body is sent in one piece, and checked by MD5 on the server."""
_PIECE = 256 * 1024
_CONNECT_SECONDS = 10
ANSWER_SECONDS = 60.0
"""How long a server may be silent."""
_CONNECTIONS = 16
_FALLBACK_REGION = "us-east-1"
"""What servers that have no regions expect in a signature."""


def connect(settings: StoreSettings, answer_seconds: float) -> S3Client:
    """Return a client that tries once, and signs payloads only where it must.

    TLS protects a body already, and nothing damages one on loopback; elsewhere plain
    HTTP gets the payload's SHA-256 signed.
    """
    from botocore.config import Config  # noqa: PLC0415 - late: boto3 costs 0.4 s

    if settings.endpoint:
        check_endpoint(settings.endpoint)
    try:
        return _session(settings).client(
            "s3",
            endpoint_url=settings.endpoint,
            config=Config(
                signature_version="s3v4",
                retries={"total_max_attempts": 1, "mode": "standard"},
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=answer_seconds,
                max_pool_connections=_CONNECTIONS,
                tcp_keepalive=True,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={
                    "addressing_style": "path" if settings.endpoint else "auto",
                    "payload_signing_enabled": not _protected(settings.endpoint),
                },
            ),
        )
    except ValueError as error:  # boto3's own word for an endpoint that is none
        raise InvalidInput("the store's endpoint is not an address") from error


def with_chain_credentials(settings: StoreSettings) -> StoreSettings:
    """Return settings with what boto3's default chain finds: keys, region, endpoint.

    Raises `AccessDenied` when the chain finds no credentials.
    """
    session = _session(settings)
    region = settings.region or session.region_name
    endpoint = settings.endpoint or _configured_endpoint(session)
    found = session.get_credentials()
    if found is None:
        raise AccessDenied(
            f"no credentials for {settings.url} were found",
            hint="log in or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    keys = found.get_frozen_credentials()
    return replace(
        settings,
        endpoint=endpoint,
        region=region,
        access_key=SecretValue(keys.access_key or ""),
        secret_key=SecretValue(keys.secret_key or ""),
        session_token=SecretValue(keys.token) if keys.token else None,
    )


def body_of(data: bytes | Sequence[bytes]) -> dict[str, Any]:
    """Return the arguments of a put that carry `data` and a digest to check it by."""
    buffers = as_buffers(data)
    if size_of(data) <= SMALL:
        joined = b"".join(buffers)
        digest = hashlib.md5(joined, usedforsecurity=False).digest()
        return {"Body": joined, "ContentMD5": base64.b64encode(digest).decode()}
    crc = 0
    for buffer in buffers:
        crc = zlib.crc32(buffer, crc)
    checksum = base64.b64encode(crc.to_bytes(4, "big")).decode()
    return {"Body": Buffers(buffers), "ChecksumCRC32": checksum}


class Buffers(io.RawIOBase):
    """Several buffers read as one file, without joining them in memory.

    `read` returns up to 256 KiB whatever smaller size is asked for: http.client asks
    for 8 or 16 KiB, and would pay for a system call each.
    """

    def __init__(self, buffers: Sequence[bytes]) -> None:
        super().__init__()
        self._views = [memoryview(b).cast("B") for b in buffers if len(b)]
        self._size = sum(view.nbytes for view in self._views)
        self._at = 0
        """Index of the present view."""
        self._offset = 0
        """Position in the present view."""
        self._position = 0

    def __len__(self) -> int:
        return self._size

    def __bool__(self) -> bool:
        return True

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be rewound, which signing and redirects need."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to `offset`, counted as for files."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = min(max(base[whence] + offset, 0), self._size)
        self._at, self._offset = 0, self._position
        while self._at < len(self._views) and self._offset >= len(self._here()):
            self._offset -= len(self._here())
            self._at += 1
        return self._position

    def read(self, size: int = -1) -> Any:
        """Return the next piece, a view on the buffers; empty at the end."""
        if self._at == len(self._views):
            return b""
        end = self._offset + (_PIECE if 0 <= size < _PIECE else max(size, _PIECE))
        piece = self._here()[self._offset : end]
        self._position += len(piece)
        self._offset += len(piece)
        if self._offset == len(self._here()):
            self._at, self._offset = self._at + 1, 0
        return piece

    def _here(self) -> memoryview:
        return self._views[self._at]


def _session(settings: StoreSettings) -> Session:
    from boto3.session import Session  # noqa: PLC0415 - late: boto3 costs 0.4 s

    def plain(value: SecretValue | None) -> str | None:
        return None if value is None else value.reveal()

    session = Session(
        aws_access_key_id=plain(settings.access_key),
        aws_secret_access_key=plain(settings.secret_key),
        aws_session_token=plain(settings.session_token),
        region_name=settings.region,
    )
    if session.region_name is None and settings.endpoint:
        return Session(
            aws_access_key_id=plain(settings.access_key),
            aws_secret_access_key=plain(settings.secret_key),
            aws_session_token=plain(settings.session_token),
            region_name=_FALLBACK_REGION,
        )
    return session


def _configured_endpoint(session: Session) -> str | None:
    """Return an endpoint that the environment or the profile names, if it does."""
    url = session.client("s3").meta.endpoint_url
    host = urlsplit(url).hostname or ""
    return None if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else url


def _protected(endpoint: str | None) -> bool:
    parts = urlsplit(endpoint or "https://")
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
