"""Commands in a pod, beside a stand-in for the API server's exec."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes import client
from websockets.sync.server import ServerConnection, serve

from lobstertrap.errors import TimedOut, Unavailable
from lobstertrap.targets.kubernetes_commands import execute

Handler = Callable[[ServerConnection], None]


@contextmanager
def api_server(answer: Handler) -> Iterator[Any]:
    """Run a server whose every exec is answered so; yields what stands for the API."""
    with serve(answer, "127.0.0.1", 0, subprotocols=["v4.channel.k8s.io"]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        configuration = client.Configuration()
        configuration.host = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        try:
            yield SimpleNamespace(configuration=configuration, namespace="tests")
        finally:
            server.shutdown()
            thread.join()


def run(api: Any, seconds: float = 30) -> tuple[int, str]:
    about = "agent 'ada':"
    return execute(api, "pod", "agent", ["check"], seconds=seconds, about=about)


def test_the_exit_status_and_what_was_printed_come_back_and_nothing_stays_open() -> (
    None
):
    def fail(connection: ServerConnection) -> None:
        connection.send(b"\x01said\n")
        cause = {"reason": "ExitCode", "message": "3"}
        status = {"status": "Failure", "details": {"causes": [cause]}}
        connection.send(b"\x03" + json.dumps(status).encode())

    with api_server(fail) as api:
        outcome = run(api)
        gc.collect()  # a connection that was left open would be found now

    assert outcome == (3, "said\n")


def test_a_command_that_does_not_end_in_time_is_given_up() -> None:
    def wait(connection: ServerConnection) -> None:
        for _ in connection:
            pass

    with api_server(wait) as api, pytest.raises(TimedOut, match="did not end within"):
        run(api, seconds=0.2)


def test_a_connection_that_is_lost_is_no_success() -> None:
    with (
        api_server(lambda connection: connection.close()) as api,
        pytest.raises(Unavailable, match="the connection to check was lost"),
    ):
        run(api)
