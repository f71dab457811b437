"""Upkeep: work on a repository that only one process in the world does at a time.

Prune and repair hold a lease like an operation on an agent does: a dead holder's is
taken over, nobody has to unlock anything. Writers and readers need no lease, and what
upkeep does is safe beside them; the lease only keeps two of its kind apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lobstertrap.lease import Holder, Lease, hold, record_key
from lobstertrap.repository.repository import Repository
from lobstertrap.stores import require_conditional_writes

HOLDER = "_repository"
"""In place of an agent's name; no agent can be called so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """The hold on a repository, and when it began."""

    lease: Lease
    now: float
    """When it began, by the store's clock."""

    def check(self) -> None:
        """Raise `LeaseLost` when another process has taken over."""
        self.lease.check()


@contextmanager
def upkeep(
    repo: Repository, kind: str, *, holder: Holder | None = None
) -> Iterator[Upkeep]:
    """Hold the repository for `kind`; `Refused` while another upkeep is alive."""
    require_conditional_writes(repo.store)
    with hold(repo.store, HOLDER, kind, holder=holder) as lease:
        # The record was written a moment ago: its time is the store's clock.
        now = repo.store.head(record_key(HOLDER)).modified
        yield Upkeep(lease=lease, now=now)
