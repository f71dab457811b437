"""The config object: which repository this is, and the slots with its master key."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lobstertrap.errors import AccessDenied, IntegrityError, InvalidInput
from lobstertrap.redaction import SecretValue
from lobstertrap.repository.crypto import repository_id
from lobstertrap.repository.derivation import Cost, Derivation, kind_of, parse_cost
from lobstertrap.repository.format import MAX_CONFIG, VERSION, newer

_FORMAT = "lobstertrap repository"
_MASTER_SIZE = 32

MAX_SLOTS = 32
"""Each may cost a guess's time and memory before the right one is found."""


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
            self.unlock(Derivation(passphrase))
        except AccessDenied:
            return False
        return True

    def unlock(self, derivation: Derivation) -> bytes:
        """Return the master key; `AccessDenied` when no slot opens."""
        ours = [slot for slot in map(_Slot.parse, self.slots) if slot]
        ours.sort(key=lambda slot: not derivation.is_begun(slot.salt))
        for slot in ours:
            master = slot.unwrap(self.id, derivation)
            if master is not None and repository_id(master) == self.id:
                derivation.remember(slot.salt, slot.cost)
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
    master: bytes, passphrase: SecretValue, cost: Cost, *, label: str
) -> dict[str, Any]:
    """Wrap `master` so that `passphrase` opens it."""
    if not passphrase.reveal():
        raise InvalidInput(
            "the repository key is empty", hint="generate one: openssl rand -hex 32"
        )
    salt, kind = secrets.token_bytes(32), kind_of(cost)
    kek = Derivation(passphrase).key(salt, cost)
    aad = _slot_aad(repository_id(master), kind)
    return {
        "kind": kind,
        "id": secrets.token_hex(8),
        "label": label,
        **asdict(cost),
        "salt": salt.hex(),
        "wrapped": AESGCM(kek).encrypt(bytes(12), master, aad).hex(),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slot:
    """A slot that a passphrase opens."""

    salt: bytes
    cost: Cost
    wrapped: bytes

    @classmethod
    def parse(cls, slot: dict[str, Any]) -> _Slot | None:
        """Return None for one of a kind that is not known, or that makes no sense."""
        try:
            cost = parse_cost(slot)
            salt = bytes.fromhex(slot["salt"])
            wrapped = bytes.fromhex(slot["wrapped"])
        except (ValueError, TypeError, KeyError, OverflowError):
            return None
        if cost is None:
            return None
        return cls(salt=salt, cost=cost, wrapped=wrapped)

    def unwrap(self, identity: bytes, derivation: Derivation) -> bytes | None:
        """Return the master key, or None when it is not the right passphrase."""
        try:
            kek = derivation.key(self.salt, self.cost)
            aad = _slot_aad(identity, kind_of(self.cost))
            master = AESGCM(kek).decrypt(bytes(12), self.wrapped, aad)
        except (InvalidTag, ValueError, OverflowError):
            return None
        return master if len(master) == _MASTER_SIZE else None


def _slot_aad(identity: bytes, kind: str) -> bytes:
    return b"lobstertrap slot 1\0" + identity + kind.encode()
