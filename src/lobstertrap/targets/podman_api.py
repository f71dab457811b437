"""One Podman engine's REST API: requests, streams, and its errors in our own tree."""

from __future__ import annotations

import contextlib
import json
import socket
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tenacity import retry, retry_if_exception, stop_after_delay, wait_fixed

from lobstertrap.errors import (
    AccessDenied,
    Conflict,
    InvalidInput,
    LobsterTrapError,
    NoSpace,
    NotFound,
    Permanent,
    TimedOut,
    Unavailable,
)
from lobstertrap.targets.podman_tunnel import open_tunnel

# What Podman 4.0 introduced is all that is used; 4.x and 5.x servers both speak it.
_API_VERSION: Final = "4.0.0"
_CONNECT_SECONDS: Final = 10.0
_READ_SECONDS: Final = 120.0
_FRAME_HEADER: Final = 8
_BETWEEN: Final = "container state improper"
"""What Podman says of a container whose end it has not finished noting down."""
_START_HINT = (
    "start it: `systemctl --user start podman.socket`, "
    "or `systemctl start podman.socket` as root"
)

Body = bytes | Iterable[bytes] | None


class PodmanApi:
    """Requests to the engine at `url`; every error names the target.

    Args:
        target: the target's name, for messages.
        url: `unix:///path`, `ssh://user@host[:port]/path` or `tcp://host:port`.
        identity: the private key file for ssh.
    """

    def __init__(self, target: str, url: str, *, identity: Path | None = None) -> None:
        self._target = target
        self.url = url
        self._identity = identity
        self._client: Any = None
        self._close: Callable[[], object] = lambda: None

    @property
    def is_socket(self) -> bool:
        """Whether the engine is reached by a unix socket, so it may be local."""
        return self.url.startswith("unix://")

    def get(self, path: str, **params: Any) -> Any:
        """Return the JSON answer to a GET; `NotFound` when there is no such thing."""
        return self._json("GET", path, params)

    def post(
        self,
        path: str,
        body: Any = None,
        *,
        data: Body = None,
        seconds: float = _READ_SECONDS,
        **params: Any,
    ) -> Any:
        """Return the JSON answer to a POST of the JSON `body` or the raw `data`."""
        if body is not None:
            data = json.dumps(body).encode()
        return self._json("POST", path, params, data=data, seconds=seconds)

    @retry(
        retry=retry_if_exception(lambda error: _BETWEEN in str(error)),
        stop=stop_after_delay(10),
        wait=wait_fixed(0.2),
        reraise=True,
    )
    def delete(
        self, path: str, *, seconds: float = _READ_SECONDS, **params: Any
    ) -> bool:
        """Delete; return False when there was no such thing."""
        try:
            self._json("DELETE", path, params, seconds=seconds)
        except NotFound:
            return False
        return True

    def find(self, path: str) -> Any | None:
        """Return the JSON answer to a GET, or None when there is no such thing."""
        try:
            return self.get(path)
        except NotFound:
            return None

    @contextlib.contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        data: Body = None,
        seconds: float | None = _READ_SECONDS,
        headers: Mapping[str, str] = MappingProxyType({}),
        **params: Any,
    ) -> Iterator[Iterator[bytes]]:
        """Open an answer that comes in pieces; closed at the end of the block.

        `seconds` may pass between two pieces: `TimedOut` otherwise.
        """
        with self._translated():
            response = self._send(
                method, path, params, data, seconds, stream=True, headers=headers
            )
        try:
            self._check(response)
            yield self._pieces(response)
        finally:
            response.close()

    def close(self) -> None:
        """Close connections and the tunnel; the next request opens them again."""
        self._close()
        self._client = None

    def _json(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any],
        *,
        data: Body = None,
        seconds: float = _READ_SECONDS,
    ) -> Any:
        with self._translated():
            response = self._send(method, path, params, data, seconds, stream=False)
            self._check(response)
            return self._decoded(response.content)

    def _decoded(self, content: bytes) -> Any:
        try:
            return json.loads(content) if content.strip() else None
        except ValueError as error:
            raise Unavailable(
                f"target '{self._target}': what answers at {self.url} is no podman",
                hint="check the target's url",
            ) from error

    def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any],
        data: Body,
        seconds: float | None,
        *,
        stream: bool,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Any:
        client = self._connected()
        kind = (
            "application/x-tar" if not isinstance(data, bytes) else "application/json"
        )
        return client._request(  # noqa: SLF001 - its verbs cannot pass a method along
            method,
            path,
            params={key: _text(value) for key, value in params.items()},
            data=data,
            headers={
                **headers,
                **({"Content-Type": kind} if data is not None else {}),
            },
            timeout=(_CONNECT_SECONDS, seconds),
            stream=stream,
        )

    def _connected(self) -> Any:
        if self.is_socket:
            # podman-py leaks its socket when the path does not answer.
            self._knock(self.url.removeprefix("unix://"))
        if self._client is None:
            self._client = self._open()
        return self._client

    def _open(self) -> Any:
        try:
            from podman.api.client import APIClient  # noqa: PLC0415 - an extra
        except ModuleNotFoundError as error:
            raise NotFound(
                f"target '{self._target}': podman-py is not installed here",
                hint="pip install 'lobstertrap[podman]'",
            ) from error
        url, tunnel = self.url, contextlib.ExitStack()
        if url.startswith("ssh://"):
            url = f"unix://{tunnel.enter_context(open_tunnel(url, self._identity))}"
        client = APIClient(base_url=url, version=_API_VERSION)
        tunnel.callback(client.close)
        self._close = weakref.finalize(self, tunnel.close)
        return client

    def _knock(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.settimeout(_CONNECT_SECONDS)
                probe.connect(path)
            except PermissionError as error:
                raise AccessDenied(
                    f"target '{self._target}': {path} may not be opened by this user",
                    hint="use the user's own socket, or add the user to its group",
                ) from error
            except OSError as error:
                raise self._unavailable(error) from error

    def _pieces(self, response: Any) -> Iterator[bytes]:
        with self._translated():
            yield from response.iter_content(chunk_size=None)

    def _check(self, response: Any) -> None:
        if response.status_code < 400:  # noqa: PLR2004 - HTTP
            return
        try:
            body = response.json()
            said = str(body.get("message") or body.get("cause"))
        except ValueError:
            said = response.text
        raise self.error(said, status=response.status_code)

    def error(self, said: str, *, status: int = 500) -> LobsterTrapError:
        """Return our error for what the engine said."""
        message = f"target '{self._target}': podman: {' '.join(said.split())}"
        if "no space left" in said or "disk quota exceeded" in said:
            return NoSpace(message, hint="free some space there")
        kinds: dict[int, type[LobsterTrapError]] = {
            400: InvalidInput,
            401: AccessDenied,
            403: AccessDenied,
            404: NotFound,
            409: Conflict,
        }
        return kinds.get(status, Permanent)(message)

    def _unavailable(self, error: BaseException) -> Unavailable:
        return Unavailable(
            f"target '{self._target}': no podman answers at {self.url}: {error}",
            hint=_START_HINT,
        )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except LobsterTrapError:
            raise
        except Exception as error:
            ours = self._translate(error)
            if ours is None:
                raise
            raise ours from error

    def _translate(self, error: Exception) -> LobsterTrapError | None:
        """Return our error for one of podman-py, requests, urllib3 or a socket."""
        import requests  # noqa: PLC0415 - comes with podman-py
        import urllib3  # noqa: PLC0415 - comes with podman-py

        chain: list[BaseException] = [error]
        while cause := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(cause)
        if any(isinstance(e, requests.Timeout | TimeoutError) for e in chain):
            return TimedOut(f"target '{self._target}': podman did not answer in time")
        foreign = requests.RequestException | urllib3.exceptions.HTTPError | OSError
        if isinstance(error, foreign):
            return self._unavailable(chain[-1])
        return None


def frames(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the payloads of a multiplexed stream (stdout and stderr, in order)."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while len(buffer) >= _FRAME_HEADER:
            end = _FRAME_HEADER + int.from_bytes(buffer[4:_FRAME_HEADER], "big")
            if len(buffer) < end:
                break
            yield bytes(buffer[_FRAME_HEADER:end])
            del buffer[:end]


def lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a byte stream as text, without their ends."""
    buffer = b""
    for piece in pieces:
        *whole, buffer = (buffer + piece).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace")
    if buffer:
        yield buffer.decode("utf-8", "replace")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else json.dumps(value)
