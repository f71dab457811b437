"""A port that a server of ours may listen on a moment later."""

from __future__ import annotations

import contextlib
import random
import socket

from lobstertrap.errors import Unavailable

HOST = "127.0.0.1"

_PORTS = range(20_000, 30_000)
"""For a server that nobody has to find: below those of outgoing connections, of which
one could take it in the seconds until the server listens."""


def free_port(host: str, wanted: int | None) -> int:
    """Return `wanted`, or any port; nothing listens there now.

    Raises `Unavailable` when it is taken, or the host is none of this machine.
    """
    if wanted is not None:
        return _bound(host, wanted)
    for port in random.sample(_PORTS, 100):
        with contextlib.suppress(Unavailable):
            return _bound(host, port)
    return _bound(host, 0)


def address(host: str) -> str:
    """Return a host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def _bound(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Unavailable(
                f"{address(host)}:{port} cannot be used for Prefect's server: "
                f"{error.strerror}",
                hint="stop what listens there, or choose another --port",
            ) from error
        return int(probe.getsockname()[1])
