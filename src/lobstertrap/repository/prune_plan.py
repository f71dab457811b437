"""The plan of a prune: what becomes of each pack; a pure function of what is known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MIN_WASTE = 0.3
"""A pack is rewritten when at least this part of it is needed by nothing..."""
ENOUGH_WASTE = 0.05
"""...and the packs that stay as they are would waste more than this part of all."""
SMALL = 4 << 20
"""Packs below this many bytes are joined..."""
MANY_SMALL = 16
"""...when there are so many of one kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackState:
    """One pack that is in the store."""

    id: bytes
    kind: int
    size: int
    modified: float
    plain: int = 0
    """Bytes of all its blobs; 0 when no index knows it."""
    needed: int = 0
    """Bytes of the blobs that snapshots need."""
    condemned_at: float | None = None

    @property
    def wasted(self) -> float:
        """About how many of its bytes nothing needs."""
        return self.size * (1 - self.needed / self.plain) if self.plain else self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """What becomes of packs; those in no list stay as they are."""

    delete: tuple[PackState, ...] = ()
    """Condemned for longer than the grace, and needed by nothing."""
    wait: tuple[PackState, ...] = ()
    """Condemned not long enough yet."""
    condemn: tuple[PackState, ...] = ()
    """Needed by nothing."""
    rewrite: tuple[PackState, ...] = ()
    """Mostly needed by nothing: the rest goes into new packs; these are condemned."""
    pardon: tuple[PackState, ...] = ()
    """Condemned, but needed: a snapshot came in when they were being condemned."""


def plan_prune(
    packs: Iterable[PackState], *, now: float, grace: float, repack: bool = True
) -> PrunePlan:
    """Decide about every pack; all times are by the store's clock.

    Packs younger than the grace are left alone: their snapshot may still be on its way.
    """
    known = list(packs)
    old = [p for p in known if now - p.modified >= grace]
    condemned = [p for p in known if p.condemned_at is not None]
    free = [p for p in condemned if not p.needed]
    over = {p.id for p in free if now - (p.condemned_at or now) >= grace}
    fresh = [p for p in old if p.condemned_at is None]
    useful = [p for p in fresh if p.needed]
    return PrunePlan(
        delete=tuple(p for p in free if p.id in over),
        wait=tuple(p for p in free if p.id not in over),
        condemn=tuple(p for p in fresh if not p.needed),
        rewrite=tuple(_worth_rewriting(useful)) if repack else (),
        pardon=tuple(p for p in condemned if p.needed),
    )


def _worth_rewriting(packs: list[PackState]) -> list[PackState]:
    chosen: dict[bytes, PackState] = {}
    for kind in {pack.kind for pack in packs}:
        small = [p for p in packs if p.kind == kind and p.size < SMALL]
        if len(small) >= MANY_SMALL:
            chosen |= {pack.id: pack for pack in small}
    allowed = ENOUGH_WASTE * sum(pack.size for pack in packs)
    waste = sum(pack.wasted for pack in packs if pack.id not in chosen)
    for pack in sorted(packs, key=lambda p: (p.wasted / p.size, p.id), reverse=True):
        if waste <= allowed or pack.wasted < MIN_WASTE * pack.size:
            break
        if pack.id not in chosen:
            chosen[pack.id] = pack
            waste -= pack.wasted
    return [pack for pack in packs if pack.id in chosen]
