"""The config object: which repository this is, and the slots with its master key."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lobstertrap.errors import AccessDenied, IntegrityError, InvalidInput
from lobstertrap.redaction import SecretValue
from lobstertrap.repository.crypto import repository_id
from lobstertrap.repository.format import MAX_CONFIG, VERSION, newer

_FORMAT = "lobstertrap repository"
_MAX_SCRYPT_MEMORY = 1 << 30
_MASTER_SIZE = 32

MAX_SLOTS = 32
"""Each may cost a guess's time and memory before the right one is found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScryptCost:
    """What one guess of a passphrase costs: 128·n·r bytes and that work p times."""

    n: int = 1 << 15
    r: int = 8
    p: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The parsed config object; unknown slots are kept as they are."""

    id: bytes
    slots: tuple[dict[str, Any], ...]

    def encode(self) -> bytes:
        """Return the bytes of `repository/config`."""
        body = {
            "format": _FORMAT,
            "version": VERSION,
            "id": self.id.hex(),
            "slots": list(self.slots),
        }
        return json.dumps(body, indent=1).encode() + b"\n"

    def opens(self, passphrase: SecretValue) -> bool:
        """Say whether a passphrase opens a slot."""
        try:
            self.unlock(passphrase)
        except AccessDenied:
            return False
        return True

    def unlock(self, passphrase: SecretValue) -> bytes:
        """Return the master key; `AccessDenied` when no slot opens."""
        for slot in self.slots:
            if slot.get("kind") != "scrypt":
                continue
            master = _unwrap(slot, self.id, passphrase)
            if master is not None and repository_id(master) == self.id:
                return master
        raise AccessDenied(
            f"the repository key does not open repository {self.id.hex()[:8]}",
            hint="use the key that the repository was created with",
        )


def parse_config(data: bytes) -> Config:
    """Parse `repository/config`."""
    broken = IntegrityError(
        "the repository's config object is damaged",
        hint="restore 'repository/config' from a copy of the bucket; "
        "without it the snapshots cannot be read",
    )
    if len(data) > MAX_CONFIG:
        raise broken
    try:
        body = json.loads(data)
        if body["format"] != _FORMAT:
            raise broken
        version = body["version"]
        if isinstance(version, int) and version > VERSION:
            raise newer("the repository")
        identity = bytes.fromhex(body["id"])
        slots = tuple(dict(slot) for slot in body["slots"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise broken from None
    if version != VERSION or len(identity) != 16:  # noqa: PLR2004 - as ID_SIZE
        raise broken
    if len(slots) > MAX_SLOTS:
        raise IntegrityError(
            f"the repository's config object has {len(slots)} keys, "
            f"and {MAX_SLOTS} are the most",
            hint="restore 'repository/config' from a copy of the bucket",
        )
    return Config(id=identity, slots=slots)


def make_slot(
    master: bytes, passphrase: SecretValue, cost: ScryptCost, *, label: str
) -> dict[str, Any]:
    """Wrap `master` so that `passphrase` opens it."""
    if not passphrase.reveal():
        raise InvalidInput(
            "the repository key is empty", hint="generate one: openssl rand -hex 32"
        )
    salt = secrets.token_bytes(32)
    kek = _scrypt(passphrase, salt, cost)
    aad = _slot_aad(repository_id(master), "scrypt")
    return {
        "kind": "scrypt",
        "id": secrets.token_hex(8),
        "label": label,
        "n": cost.n,
        "r": cost.r,
        "p": cost.p,
        "salt": salt.hex(),
        "wrapped": AESGCM(kek).encrypt(bytes(12), master, aad).hex(),
    }


def _unwrap(
    slot: dict[str, Any], identity: bytes, passphrase: SecretValue
) -> bytes | None:
    try:
        cost = ScryptCost(n=int(slot["n"]), r=int(slot["r"]), p=int(slot["p"]))
        salt = bytes.fromhex(slot["salt"])
        wrapped = bytes.fromhex(slot["wrapped"])
        kek = _scrypt(passphrase, salt, cost)
        master = AESGCM(kek).decrypt(bytes(12), wrapped, _slot_aad(identity, "scrypt"))
    except (InvalidTag, ValueError, TypeError, KeyError, OverflowError):
        return None
    return master if len(master) == _MASTER_SIZE else None


def _slot_aad(identity: bytes, kind: str) -> bytes:
    return b"lobstertrap slot 1\0" + identity + kind.encode()


def _scrypt(passphrase: SecretValue, salt: bytes, cost: ScryptCost) -> bytes:
    memory = 128 * cost.n * cost.r
    if not 0 < memory <= _MAX_SCRYPT_MEMORY or not 0 < cost.p <= 16:  # noqa: PLR2004
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
