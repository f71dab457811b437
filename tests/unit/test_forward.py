"""A port here that leads to an agent elsewhere."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from lobstertrap.cli.forward import Forward
from lobstertrap.errors import AccessDenied

ELSEWHERE = """
import socket
from lobstertrap.cli.forward import Forward

address = ("127.0.0.1", {port})
forward = Forward(lambda: socket.create_connection(address), wanted={wanted})
print(forward.url, flush=True)
forward.serve()
"""


@pytest.fixture
def echo():
    """Return the port of a server that answers every connection with what it says."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                asked, _ = listener.accept()
            except OSError:
                return
            with asked:
                while said := asked.recv(65536):
                    asked.sendall(said)

    answering = threading.Thread(target=answer)
    answering.start()
    with closing(listener):
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        answering.join()


def test_what_is_said_here_is_heard_there_and_back_on_every_connection(echo):
    taken = echo  # the port that is wanted here is in use: another one is found
    code = ELSEWHERE.format(port=echo, wanted=taken)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as forward:
        port = int(forward.stdout.readline().rpartition(":")[2])
        heard = []
        for word in (b"one", b"two" * 100_000):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as here:
                sending = threading.Thread(target=here.sendall, args=(word,))
                sending.start()
                heard.append(b"")
                while len(heard[-1]) < len(word):
                    heard[-1] += here.recv(65536)
                sending.join()
        forward.kill()

    assert port != taken
    assert heard == [b"one", b"two" * 100_000]


def test_what_cannot_be_reached_is_told_before_anything_listens():
    def denied() -> socket.socket:
        raise AccessDenied("its ports may not be forwarded")

    with pytest.raises(AccessDenied):
        Forward(denied, wanted=8080)
