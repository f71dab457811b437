"""The fence of a Podman target: who may no longer act on an agent there.

The two numbers are the name of a Podman secret, `lobstertrap-AGENT.fence-EPOCH-TURN`:
the only thing that an engine keeps, makes atomically and never prunes. Several may
stand side by side for a moment; the larger of each number counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lobstertrap.errors import LobsterTrapError, Refused
from lobstertrap.targets.podman_api import PodmanApi

_HINT = "another operation went on without this one: look at `lobstertrap status`"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodmanFence:
    """Two numbers that never fall: launches up to an epoch, movers below a turn."""

    api: PodmanApi
    agent: str
    target: str

    def raise_to(self, *, epoch: int, turn: int) -> tuple[int, int]:
        """Refuse launches up to `epoch` and movers of a lower `turn` from now on.

        Returns the two numbers as they are kept now.
        """
        before = self._found()
        now = self._read(before)
        after = (max(now[0], epoch), max(now[1], turn))
        if after == now:
            return now
        self._save(after)
        for name, (old_epoch, old_turn) in before.items():
            if old_epoch <= after[0] and old_turn <= after[1]:
                self.api.delete(f"/secrets/{name}")
        return after

    def admit_launch(self, epoch: int) -> None:
        """Raise `Refused` when `epoch` is fenced off."""
        fenced, _ = self._read(self._found())
        if epoch <= fenced:
            raise Refused(
                f"target '{self.target}': agent '{self.agent}': epoch {epoch} is "
                f"fenced off, as all up to {fenced}",
                hint=_HINT,
            )

    def admit_mover(self, turn: int | None) -> None:
        """Raise `Refused` for a mover whose turn is over."""
        _, fenced = self._read(self._found())
        if turn is not None and turn < fenced:
            raise Refused(
                f"target '{self.target}': agent '{self.agent}': a mover of turn "
                f"{turn} comes too late, it is turn {fenced} here",
                hint=_HINT,
            )

    def _save(self, numbers: tuple[int, int]) -> None:
        name = f"lobstertrap-{self.agent}.fence-{numbers[0]}-{numbers[1]}"
        try:
            self.api.post("/secrets/create", data=b"fence", name=name)
        except LobsterTrapError:
            if name not in self._found():  # somebody else made the same one
                raise

    def _found(self) -> dict[str, tuple[int, int]]:
        pattern = re.compile(rf"lobstertrap-{self.agent}\.fence-(\d+)-(\d+)")
        names = [s["Spec"]["Name"] for s in self.api.get("/secrets/json") or []]
        matches = [m for name in names if (m := pattern.fullmatch(name))]
        return {m[0]: (int(m[1]), int(m[2])) for m in matches}

    @staticmethod
    def _read(found: dict[str, tuple[int, int]]) -> tuple[int, int]:
        epochs, turns = zip(*found.values(), strict=True) if found else ((0,), (0,))
        return max(epochs), max(turns)
