"""The gate by which a cluster's pods reach the demo's store."""

from __future__ import annotations

import socket
import threading

import pytest

from lobstertrap.cli.demo_gate import Gate
from lobstertrap.errors import InvalidInput


def test_what_is_said_to_the_gate_is_heard_behind_it_and_answered():
    with socket.create_server(("127.0.0.1", 0)) as behind:

        def echo() -> None:
            heard, _ = behind.accept()
            with heard:
                heard.sendall(heard.recv(64).upper())

        answering = threading.Thread(target=echo)
        answering.start()
        with Gate("127.0.0.1", behind.getsockname()[1]) as gate:
            host, _, port = gate.address.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=120) as said:
                said.sendall(b"lobster")
                heard = said.recv(64)
            answering.join()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((host, int(port)), timeout=120)

    assert heard == b"LOBSTER"


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(InvalidInput, match=r"203\.0\.113\.250 is no address"):
        Gate("203.0.113.250", 1).__enter__()
