"""A port on loopback that leads to an agent which is reached only through its target.

Every connection is made anew, so an agent that was started again is reached as well.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NoReturn

from lobstertrap.cli.ports import HOST
from lobstertrap.cli.text import printable
from lobstertrap.errors import LobsterTrapError

Dial = Callable[[], socket.socket]

_CHUNK = 64 * 1024


class Forward:
    """A listening port; `serve` takes connections until it is interrupted.

    Args:
        dial: what connects to the agent.
        wanted: the port here, if nobody listens there; any other one if somebody does.
    """

    def __init__(self, dial: Dial, *, wanted: int) -> None:
        self._dial = dial
        dial().close()  # what is wrong is told now, and not to a browser
        try:
            self._listener = socket.create_server((HOST, wanted))
        except OSError:
            self._listener = socket.create_server((HOST, 0))

    @property
    def url(self) -> str:
        """Where it is reached, for a browser."""
        return f"http://{HOST}:{self._listener.getsockname()[1]}"

    def serve(self) -> NoReturn:
        """Take connections, each in a thread of its own."""
        with self._listener:
            while True:
                here, _ = self._listener.accept()
                work = partial(_connect, here, self._dial)
                threading.Thread(target=work, daemon=True).start()


def _connect(here: socket.socket, dial: Dial) -> None:
    with here:
        try:
            there = dial()
        except LobsterTrapError as error:
            told = printable(error.message)
            print(f"error: {told}", file=sys.stderr, flush=True)  # noqa: T201
            return
        back = threading.Thread(target=_copy, args=(there, here), daemon=True)
        back.start()
        _copy(here, there)
        back.join()
        there.close()


def _copy(one: socket.socket, other: socket.socket) -> None:
    """Pass on what one side says until it has ended; then the other side ends, too."""
    with suppress(OSError):  # either side may be gone
        while data := one.recv(_CHUNK):
            other.sendall(data)
    for end in (one, other):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
