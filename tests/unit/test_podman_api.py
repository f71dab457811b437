"""Requests to a small HTTP server that answers as Podman does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lobstertrap.errors import Permanent
from lobstertrap.targets.podman_api import PodmanApi

BETWEEN = (
    "cannot remove container 5 as it is stopping - running or paused containers cannot "
    "be removed without force: container state improper"
)


@dataclass
class Engine:
    """What it answers, first first, and what it was asked."""

    api: PodmanApi
    answers: list[tuple[int, str]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def engine() -> Iterator[Engine]:
    class Handler(BaseHTTPRequestHandler):
        def do_DELETE(self) -> None:
            made.asked.append(self.path)
            status, said = made.answers.pop(0)
            body = json.dumps({"message": said}).encode() if said else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        made = Engine(PodmanApi("server", f"tcp://127.0.0.1:{server.server_port}"))
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield made
        made.api.close()
        server.shutdown()
        thread.join()


def test_a_container_that_is_between_two_states_is_deleted_a_moment_later(
    engine: Engine,
) -> None:
    engine.answers = [(500, BETWEEN), (500, BETWEEN), (200, "")]

    assert engine.api.delete("/containers/five", force=True) is True

    assert len(set(engine.asked)) == 1
    assert (len(engine.asked), engine.answers) == (3, [])


def test_what_cannot_be_deleted_is_told_at_once(engine: Engine) -> None:
    engine.answers = [(500, "it is in use"), (200, "")]

    with pytest.raises(Permanent, match="it is in use"):
        engine.api.delete("/containers/five")

    assert len(engine.asked) == 1


def test_what_is_not_there_needs_no_deletion(engine: Engine) -> None:
    engine.answers = [(404, "no such container")]

    assert engine.api.delete("/containers/five") is False
