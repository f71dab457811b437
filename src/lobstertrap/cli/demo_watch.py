"""Those who look on during the demo: one who talks all the time, one who counts."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from lobstertrap.cli.demo_stage import DESTINATION, SOURCE
from lobstertrap.config import Config
from lobstertrap.errors import LobsterTrapError
from lobstertrap.targets.base import AgentStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The agent of the demo, asked over HTTP at `address`."""

    address: str
    token: str = field(repr=False)

    def say(self, text: str) -> dict[str, Any]:
        """Send a message; return its stored entry, once it is acknowledged."""
        return dict(json.loads(self._ask("POST", "/message", {"text": text})))

    def grow(self, megabytes: int) -> None:
        """Make its state larger."""
        self._ask("POST", "/grow", {"megabytes": megabytes})

    def transcript(self) -> bytes:
        """Return every message so far, one JSON object per line."""
        return self._ask("GET", "/transcript", None)

    def _ask(self, method: str, path: str, body: object) -> bytes:
        connection = http.client.HTTPConnection(self.address, timeout=60)
        with contextlib.closing(connection):
            headers = {"Authorization": f"Bearer {self.token}"}
            connection.request(method, path, json.dumps(body), headers)
            answer = connection.getresponse()
            data = answer.read()
        if answer.status != http.client.OK:
            raise http.client.HTTPException(f"{path}: {answer.status} {data[:200]!r}")
        return data


class _Background(ABC):
    """A thread that does one thing again and again until the block ends."""

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self._pause):
            self.once()

    @abstractmethod
    def once(self) -> None:
        """Do it once."""


class Watcher(_Background):
    """Asks both targets all the time whether the agent runs there.

    Two are running if one is seen running before *and* after the other was: under the
    same epoch, so that it cannot have been stopped and started between.
    """

    def __init__(self, config: Config, agent: str) -> None:
        super().__init__(pause=0.1)
        self._spec = config.agent(agent)
        self._targets = [config.target(name) for name in (SOURCE, DESTINATION)]
        self.asked = 0
        self.address = ""
        """Where it was last seen running."""
        self.twice: list[str] = []
        """Every moment at which two were seen."""

    def once(self) -> None:
        """Look here, there and here again."""
        here, there = self._targets
        with contextlib.suppress(LobsterTrapError):  # a target may be busy; ask again
            first = here.status(self._spec)
            other = there.status(self._spec)
            again = here.status(self._spec)
            self.asked += 1
            if (
                _runs(first)
                and _runs(again)
                and _runs(other)
                and first.epoch == again.epoch
            ):
                self.twice.append(f"epochs {first.epoch} and {other.epoch}")
            for status in (other, again):
                if _runs(status):
                    self.address = next(iter(status.addresses.values()), self.address)


class Talker(_Background):
    """Says something all the time, and says it again until it is acknowledged."""

    def __init__(self, watcher: Watcher, token: str) -> None:
        super().__init__(pause=0.15)
        self._watcher = watcher
        self._token = token
        self.acknowledged: list[str] = []
        self.longest_silence = 0.0
        """Seconds between two acknowledged messages."""
        self._last = time.monotonic()

    def once(self) -> None:
        """Say the next thing; an agent that is away is no error."""
        text = f"message {len(self.acknowledged) + 1} of somebody who does not stop"
        tally = Tally(address=self._watcher.address, token=self._token)
        with contextlib.suppress(OSError, http.client.HTTPException):
            tally.say(text)
            self.acknowledged.append(text)
            now = time.monotonic()
            self.longest_silence = max(self.longest_silence, now - self._last)
            self._last = now


def _runs(status: AgentStatus) -> bool:
    return status.phase == "running"
