"""One probe: what counts as ready, and what is said when it is not."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lobstertrap.agent import Health, HttpProbe
from lobstertrap.errors import TimedOut
from lobstertrap.targets.health import probe

HTTP = Health(http=HttpProbe(port="web", path="/ready"), timeout=0.5)
COMMAND = Health(command=["check", "me"], timeout=0.5)


def never(command: Sequence[str], timeout: float) -> tuple[int, str]:
    raise AssertionError(command)


@contextmanager
def server(status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(f"{self.path} is\n{status}".encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [200, 204, 302])
def test_a_2xx_or_3xx_answer_is_ready(status: int) -> None:
    with server(status) as address:
        assert probe(HTTP, {"web": address}, never) == (True, "")


@pytest.mark.parametrize("status", [404, 503])
def test_another_answer_is_not_and_is_quoted(status: int) -> None:
    with server(status) as address:
        ready, why = probe(HTTP, {"web": address}, never)

    assert not ready
    assert why == f"GET http://{address}/ready answered {status}: /ready is {status}"


def test_a_closed_port_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"

    ready, why = probe(HTTP, {"web": address}, never)

    assert not ready
    assert why == f"GET http://{address}/ready: connection refused"


def test_a_server_that_says_nothing_is_not_waited_for_ever() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        ready, why = probe(HTTP, {"web": address}, never)

    assert not ready
    assert why.endswith("no answer within 0.5 s")


def test_a_port_without_an_address_is_named() -> None:
    assert probe(HTTP, {}, never) == (False, "port 'web' is not published")


def test_a_server_that_does_not_speak_http_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as odd:

        def answer() -> None:
            connection, _ = odd.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-nonsense\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        ready, why = probe(HTTP, {"web": f"127.0.0.1:{odd.getsockname()[1]}"}, never)
        thread.join()

    assert not ready
    assert "SSH-2.0-nonsense" in why


def test_a_command_is_ready_by_its_exit_status() -> None:
    def run(command: Sequence[str], timeout: float) -> tuple[int, str]:
        assert (command, timeout) == (["check", "me"], 0.5)
        return 0, "fine"

    assert probe(COMMAND, {}, run) == (True, "")


def test_a_command_that_fails_is_quoted() -> None:
    ready, why = probe(COMMAND, {}, lambda *_: (3, "no\nluck\n"))

    assert not ready
    assert why == "health command ended with status 3: no luck"


def test_a_command_that_hangs_is_an_answer_too() -> None:
    def run(command: Sequence[str], timeout: float) -> tuple[int, str]:
        raise TimedOut("health command took longer than 0.5 s")

    ready, why = probe(COMMAND, {}, run)

    assert not ready
    assert why == "health command took longer than 0.5 s"
