"""The fence of a host target: who may no longer act on an agent here.

    <root>/<agent>/fence.json   {"version": 1, "epoch": n, "turn": n}

It outlives the instance and its volumes, because a process that comes too late does so
after everything else is over.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lobstertrap.errors import IntegrityError, Refused, TimedOut
from lobstertrap.targets.supervisor import write_state

_PATIENCE_SECONDS = 10.0
_HINT = "another operation went on without this one: look at `lobstertrap status`"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochFence:
    """Two numbers that never fall: launches up to an epoch, restores below a turn."""

    directory: Path
    """The agent's own directory below the target's root."""
    about: str
    """What begins every message: the target and the agent."""

    def raise_to(self, *, epoch: int, turn: int) -> tuple[int, int]:
        """Refuse launches up to `epoch` and restores of a lower `turn` from now on.

        Returns the two numbers as they are kept now.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._alone():
            now = self._read()
            after = (max(now[0], epoch), max(now[1], turn))
            if after != now:
                state = {"version": 1, "epoch": after[0], "turn": after[1]}
                write_state(self._file, state)
        return after

    def admit_launch(self, epoch: int) -> None:
        """Raise `Refused` when `epoch` is fenced off.

        The caller holds the instance's lock, so that whoever raised the fence too late
        for this launch sees it.
        """
        fenced, _ = self._read()
        if epoch <= fenced:
            raise Refused(
                f"{self.about} epoch {epoch} is fenced off, as all up to {fenced}",
                hint=_HINT,
            )

    def admit_mover(self, turn: int | None) -> None:
        """Raise `Refused` for a mover whose turn is over; the caller has the lock."""
        _, fenced = self._read()
        if turn is not None and turn < fenced:
            raise Refused(
                f"{self.about} a mover of turn {turn} comes too late, it is turn"
                f" {fenced} here",
                hint=_HINT,
            )

    @property
    def _file(self) -> Path:
        return self.directory / "fence.json"

    def _read(self) -> tuple[int, int]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            return int(found["epoch"]), int(found["turn"])
        except (FileNotFoundError, NotADirectoryError):
            return 0, 0
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{self.about} {self._file} cannot be read",
                hint="make sure that the agent runs nowhere, then remove the file",
            ) from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait for others that write the file; nobody does so for long."""
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        try:
            while not _locked(descriptor):
                if time.monotonic() > deadline:
                    raise TimedOut(
                        f"{self.about} somebody holds its fence",
                        hint="look for a suspended lobstertrap process",
                    )
                time.sleep(0.01)
            yield
        finally:
            os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
