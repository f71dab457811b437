"""The fence of a host target: which epochs may no longer act on an agent here.

    <root>/<agent>/fence.json   {"version": 1, "fenced": n, "launched": n}

It outlives the instance and its volumes, because a process that comes too late does so
after everything else is over.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lobstertrap.errors import IntegrityError, Refused
from lobstertrap.targets.supervisor import write_state

_HINT = "another operation went on without this one: look at `lobstertrap status`"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochFence:
    """Two numbers that never fall: the highest epochs fenced off, and launched."""

    directory: Path
    """The agent's own directory below the target's root."""
    about: str
    """What begins every message: the target and the agent."""

    def raise_to(self, epoch: int) -> None:
        """Refuse launches up to `epoch` from now on."""
        self._raise(fenced=epoch)

    def admit_launch(self, epoch: int) -> None:
        """Record a launch under `epoch`; `Refused` when it is fenced off.

        The caller holds the instance's lock, so that whoever raised the fence too late
        for this launch sees it.
        """
        fenced, _ = self._read()
        if epoch <= fenced:
            raise Refused(
                f"{self.about} epoch {epoch} is fenced off, as all up to {fenced}",
                hint=_HINT,
            )
        self._raise(launched=epoch)

    def admit_restore(self, epoch: int | None) -> None:
        """Raise `Refused` for a restore that belongs to an epoch of the past."""
        newest = max(self._read())
        if epoch is not None and epoch < newest:
            raise Refused(
                f"{self.about} a restore of epoch {epoch} comes too late, {newest} was"
                " here",
                hint=_HINT,
            )

    @property
    def _file(self) -> Path:
        return self.directory / "fence.json"

    def _read(self) -> tuple[int, int]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            return int(found["fenced"]), int(found["launched"])
        except (FileNotFoundError, NotADirectoryError):
            return 0, 0
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{self.about} {self._file} cannot be read",
                hint="make sure that the agent runs nowhere, then remove the file",
            ) from error

    def _raise(self, *, fenced: int = 0, launched: int = 0) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._alone():
            now = self._read()
            after = (max(now[0], fenced), max(now[1], launched))
            if after != now:
                state = {"version": 1, "fenced": after[0], "launched": after[1]}
                write_state(self._file, state)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait for others that write the file; nobody holds this for long."""
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
