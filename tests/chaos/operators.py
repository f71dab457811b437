"""Processes of the small world that stop before each of their effects until told to go.

Each runs in a thread of its own, but only one of them moves at any time, so a test that
says who goes next is the same every time it is run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from lobstertrap.errors import LobsterTrapError, Unavailable
from tests.chaos.parts import Fault, Killed, Process
from tests.chaos.world import World

_PATIENCE = 120.0
"""Seconds after which a test that hangs is a test that fails."""


@dataclass
class Operator(Process):
    """A process that makes one effect at a time."""

    busy: bool = False
    outcome: BaseException | None = None
    next_fault: Fault | None = None
    outage: int = 0
    """For how many more of its requests the store does not answer."""
    _go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _there: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.gate = self._wait
        self.neighbours.append(self)

    def start(self, command: Callable[[Process], object]) -> Operator:
        """Begin `command`; returns when it is before its first effect."""
        self.busy, self.dead, self.outcome = True, False, None
        self._thread = threading.Thread(target=self._run, args=(command,), daemon=True)
        self._thread.start()
        self._meet()
        return self

    def advance(self, effects: int = 1) -> bool:
        """Make so many effects, or fewer if it ends; say whether it goes on."""
        for _ in range(effects):
            if not self.busy:
                break
            self._go.release()
            self._meet()
        return self.busy

    def finish(self) -> Operator:
        """Run to the end."""
        while self.advance():
            pass
        return self

    def kill(self) -> None:
        """End it as by SIGKILL, before its next effect."""
        self.die()
        self.finish()
        self.lease = None

    def _wait(self, label: str) -> None:
        self._there.release()
        if not self._go.acquire(timeout=_PATIENCE):
            raise Killed

    def _next(self, label: str) -> Fault | None:
        planned = super()._next(label)
        if self.outage and label in ("get", "put", "head"):
            self.outage -= 1
            return Fault("before", Unavailable)
        fault, self.next_fault = self.next_fault or planned, None
        return fault

    def _meet(self) -> None:
        if not self._there.acquire(timeout=_PATIENCE):
            raise TimeoutError(self.name)
        if not self.busy and self._thread:
            self._thread.join(_PATIENCE)

    def _run(self, command: Callable[[Process], object]) -> None:
        try:
            command(self)
        except (LobsterTrapError, Killed, KeyboardInterrupt) as error:
            self.outcome = error
        except BaseException as error:  # a bug in the code or in the test
            self.outcome = error
            self.world.break_promise(f"{self.name}: {error!r}")
        finally:
            self.busy = False
            self._there.release()


def operators(world: World, *names: str) -> list[Operator]:
    """Return operators that know of each other: the living ones renew their leases."""
    together: list[Process] = []
    return [Operator(world, name=name, neighbours=together) for name in names]
