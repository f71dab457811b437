"""How botocore is asked: the client's configuration, credentials, bodies of a put."""

from __future__ import annotations

import base64
import hashlib
import io
import ipaddress
import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lobstertrap.errors import AccessDenied, InvalidInput
from lobstertrap.redaction import SecretValue
from lobstertrap.stores.keys import as_buffers, size_of
from lobstertrap.stores.settings import StoreSettings, check_endpoint

if TYPE_CHECKING:
    from botocore.loaders import Loader
    from botocore.session import Session
    from mypy_boto3_s3 import S3Client

SMALL = 64 * 1024
"""Bytes up to which a body is sent in one piece, and checked by MD5 on the server."""
_PIECE = 256 * 1024
_CONNECT_SECONDS = 10
ANSWER_SECONDS = 60.0
"""How long a server may be silent."""
_CONNECTIONS = 16


def connect(settings: StoreSettings, answer_seconds: float) -> S3Client:
    """Return a client that tries once, and signs payloads only where it must.

    TLS protects a body already, and nothing damages one on loopback; elsewhere plain
    HTTP gets the payload's SHA-256 signed.
    """
    from botocore.config import Config  # noqa: PLC0415 - late: it costs 0.2 s

    if settings.endpoint:
        check_endpoint(settings.endpoint)
    try:
        return _session(settings).create_client(  # type: ignore[return-value]
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
    except ValueError as error:  # botocore's own word for an endpoint that is none
        raise InvalidInput("the store's endpoint is not an address") from error


def with_chain_credentials(settings: StoreSettings) -> StoreSettings:
    """Return settings with what botocore's default chain finds: keys, region, endpoint.

    Raises `AccessDenied` when the chain finds no credentials.
    """
    session = _session(settings)
    region = settings.region or session.get_config_variable("region")
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
    # Not boto3's own, which would load s3transfer and multiprocessing as well.
    from botocore.session import Session  # noqa: PLC0415 - late: it costs 0.2 s

    session = Session()
    session.lazy_register_component("data_loader", partial(_loader, session))
    if settings.access_key is not None and settings.secret_key is not None:
        token = settings.session_token
        session.set_credentials(
            settings.access_key.reveal(),
            settings.secret_key.reveal(),
            None if token is None else token.reveal(),
        )
    if settings.region is not None:
        session.set_config_variable("region", settings.region)
    return session


def _loader(session: Session) -> Loader:
    """Return a loader of botocore's data that looks for services in one look.

    Its own opens the directories of all 400 to be sure that each is one, twice.
    """
    from botocore.loaders import Loader  # noqa: PLC0415 - late, as above

    class Quick(Loader):
        def list_available_services(self, type_name: str) -> list[str]:
            del type_name
            return sorted({n for p in self.search_paths for n in _names_in(p)})

    paths = (session.get_config_variable("data_path") or "").split(os.pathsep)
    more = [os.path.expanduser(os.path.expandvars(path)) for path in paths if path]  # noqa: PTH111 - as botocore does
    return Quick(extra_search_paths=more)


def _names_in(directory: str) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 - botocore has texts
    except OSError:
        return []


def _configured_endpoint(session: Session) -> str | None:
    """Return an endpoint that the environment or the profile names, if it does."""
    url = session.create_client("s3").meta.endpoint_url
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
