"""The key that opens a slot, derived while the store is still being reached.

That takes of the repository only a slot's salt and cost. Those of the slot that opened
last are remembered beside the local cache; they are no secret. The wrapped master key
is not remembered: nothing opens without the store, nor by a slot that was removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lobstertrap.errors import Permanent
from lobstertrap.redaction import SecretValue

_MAX_MEMORY = 1 << 30
_MAX_TIMES = 16
_MAX_REMEMBERED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Argon2Cost:
    """What one guess costs by Argon2id (RFC 9106): KiB, and how often they are passed.

    The default is what OWASP's Password Storage Cheat Sheet asks for first.
    """

    iterations: int = 2
    lanes: int = 1
    memory_cost: int = 19 << 10

    def derive(self, passphrase: bytes, salt: bytes) -> bytes:
        """Return 32 bytes; `ValueError` for a cost that no reader allows.

        `Permanent` where cryptography was built without it.
        """
        # Imported late: the mover begins to derive before it has the engine.
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
        from cryptography.hazmat.primitives.kdf.argon2 import (  # noqa: PLC0415
            Argon2id,
        )

        times = max(self.iterations, self.lanes)
        if self.memory_cost << 10 > _MAX_MEMORY or times > _MAX_TIMES:
            raise ValueError("unreasonable cost")
        try:
            return Argon2id(salt=salt, length=32, **asdict(self)).derive(passphrase)
        except UnsupportedAlgorithm:
            raise Permanent(
                "this machine's cryptography package has no Argon2id",
                hint="install the published wheel, or build it on OpenSSL 3.2 or newer",
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScryptCost:
    """What one guess costs by scrypt (RFC 7914): 128·n·r bytes and that work p times.

    Slots of this kind are read; new ones are not made.
    """

    n: int
    r: int
    p: int

    def derive(self, passphrase: bytes, salt: bytes) -> bytes:
        """Return 32 bytes; `ValueError` for a cost that no reader allows."""
        memory = 128 * self.n * self.r
        if not 0 < memory <= _MAX_MEMORY or not 0 < self.p <= _MAX_TIMES:
            raise ValueError("unreasonable cost")
        return hashlib.scrypt(
            passphrase,
            salt=salt,
            n=self.n,
            r=self.r,
            p=self.p,
            maxmem=memory + (4 << 20) + 256 * self.r * self.p,
            dklen=32,
        )


Cost = Argon2Cost | ScryptCost
_COSTS: dict[str, type[Cost]] = {"argon2id": Argon2Cost, "scrypt": ScryptCost}
"""By kind of slot."""


def kind_of(cost: Cost) -> str:
    """Return the kind of the slots that have such a cost."""
    return next(kind for kind, known in _COSTS.items() if isinstance(cost, known))


def parse_cost(slot: Mapping[str, Any]) -> Cost | None:
    """Return the cost in a slot; None for a slot of a kind that is not known.

    Raises `ValueError`, `TypeError`, `KeyError` or `OverflowError` for one that makes
    no sense.
    """
    known = _COSTS.get(slot["kind"])
    if known is None:
        return None
    return known(**{field.name: int(slot[field.name]) for field in fields(known)})


class Derivation:
    """Derives the keys of one passphrase; that of the remembered slot at once."""

    def __init__(
        self, passphrase: SecretValue, memory: Path | None = None, *, url: str = ""
    ) -> None:
        """Begin with what `memory`, a directory, has of the repository at `url`."""
        self._passphrase = passphrase
        self._path: Path | None = None
        self._begun: tuple[bytes, Cost] | None = None
        self._key: Future[bytes] | None = None
        if memory is None:
            return
        name = hashlib.sha256(url.encode()).hexdigest()[:32]
        self._path = memory / f"slot-{name}"
        self._begun = _recall(self._path)
        if self._begun is not None:
            # It lets go of the GIL: imports and requests go on beside it.
            pool = ThreadPoolExecutor(1, "derive")
            self._key = pool.submit(self._derive, *self._begun)
            pool.shutdown(wait=False)

    def is_begun(self, salt: bytes) -> bool:
        """Say whether this is the salt of the remembered slot."""
        return self._begun is not None and self._begun[0] == salt

    def key(self, salt: bytes, cost: Cost) -> bytes:
        """Return the key of a slot; `ValueError` for a cost that is not allowed."""
        if self._key is not None and self._begun == (salt, cost):
            return self._key.result()
        return self._derive(salt, cost)

    def _derive(self, salt: bytes, cost: Cost) -> bytes:
        return cost.derive(self._passphrase.reveal().encode(), salt)

    def remember(self, salt: bytes, cost: Cost) -> None:
        """Begin with this slot the next time."""
        if self._path is None or self._begun == (salt, cost):
            return
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):  # then the next time takes as long
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            slot = {"kind": kind_of(cost), "salt": salt.hex(), **asdict(cost)}
            temporary.write_text(json.dumps(slot))
            temporary.replace(self._path)


def _recall(path: Path) -> tuple[bytes, Cost] | None:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MAX_REMEMBERED))
        salt, cost = bytes.fromhex(found["salt"]), parse_cost(found)
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return None if cost is None else (salt, cost)
