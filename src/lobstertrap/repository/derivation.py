"""The key that opens a slot, derived while the store is still being reached.

That takes 0.2 s of one core, and of the repository only a slot's salt and cost. Those
of the slot that opened last are remembered beside the local cache; they are no secret.
The wrapped master key is not remembered: nothing opens without the store, nor by a slot
that was removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from lobstertrap.redaction import SecretValue

_MAX_MEMORY = 1 << 30
_MAX_REMEMBERED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ScryptCost:
    """What one guess of a passphrase costs: 128·n·r bytes and that work p times.

    The default is the least that OWASP's Password Storage Cheat Sheet asks for, in the
    form that takes 16 MiB: a mover's peak memory has it in it.
    """

    n: int = 1 << 14
    r: int = 8
    p: int = 5


def scrypt(passphrase: SecretValue, salt: bytes, cost: ScryptCost) -> bytes:
    """Return 32 bytes (RFC 7914); `ValueError` for a cost that no reader allows."""
    memory = 128 * cost.n * cost.r
    if not 0 < memory <= _MAX_MEMORY or not 0 < cost.p <= 16:  # noqa: PLR2004
        raise ValueError("unreasonable cost")
    return hashlib.scrypt(
        passphrase.reveal().encode(),
        salt=salt,
        n=cost.n,
        r=cost.r,
        p=cost.p,
        maxmem=memory + (4 << 20) + 256 * cost.r * cost.p,
        dklen=32,
    )


class Derivation:
    """Derives the keys of one passphrase; that of the remembered slot at once."""

    def __init__(
        self, passphrase: SecretValue, memory: Path | None = None, *, url: str = ""
    ) -> None:
        """Begin with what `memory`, a directory, has of the repository at `url`."""
        self._passphrase = passphrase
        self._path: Path | None = None
        self._begun: tuple[bytes, ScryptCost] | None = None
        self._key: Future[bytes] | None = None
        if memory is None:
            return
        name = hashlib.sha256(url.encode()).hexdigest()[:32]
        self._path = memory / f"slot-{name}"
        self._begun = _recall(self._path)
        if self._begun is not None:
            # hashlib lets go of the GIL: imports and requests go on beside it.
            pool = ThreadPoolExecutor(1, "derive")
            self._key = pool.submit(scrypt, passphrase, *self._begun)
            pool.shutdown(wait=False)

    def is_begun(self, salt: bytes) -> bool:
        """Say whether this is the salt of the remembered slot."""
        return self._begun is not None and self._begun[0] == salt

    def key(self, salt: bytes, cost: ScryptCost) -> bytes:
        """Return the key of a slot, as `scrypt` does."""
        if self._key is not None and self._begun == (salt, cost):
            return self._key.result()
        return scrypt(self._passphrase, salt, cost)

    def remember(self, salt: bytes, cost: ScryptCost) -> None:
        """Begin with this slot the next time."""
        if self._path is None or self._begun == (salt, cost):
            return
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):  # then the next time takes as long
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.write_text(json.dumps({"salt": salt.hex(), **asdict(cost)}))
            temporary.replace(self._path)


def _recall(path: Path) -> tuple[bytes, ScryptCost] | None:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MAX_REMEMBERED))
        salt = bytes.fromhex(found["salt"])
        cost = ScryptCost(n=int(found["n"]), r=int(found["r"]), p=int(found["p"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return salt, cost
