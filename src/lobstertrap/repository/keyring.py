"""The key slots of a repository: who can open it, by which passphrase."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lobstertrap.errors import Conflict, InvalidInput, NotFound, Refused, Unavailable
from lobstertrap.redaction import SecretValue
from lobstertrap.repository.derivation import Argon2Cost, Cost
from lobstertrap.repository.format import CONFIG_KEY, MAX_CONFIG
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.slots import (
    MAX_SLOTS,
    Config,
    make_slot,
    parse_config,
)
from lobstertrap.stores import require_conditional_writes

_ATTEMPTS = 10
_MIN_PREFIX = 4
_MAX_LABEL = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySlot:
    """One way to open the repository; nothing here is secret."""

    id: str
    kind: str
    label: str


def list_keys(repo: Repository) -> list[KeySlot]:
    """Return all slots, oldest first; of kinds that this program does not know, too."""
    return [
        KeySlot(
            id=str(slot.get("id", "")),
            kind=str(slot.get("kind", "")),
            label=str(slot.get("label", "")),
        )
        for slot in _read(repo)[0].slots
    ]


def add_key(
    repo: Repository,
    passphrase: SecretValue,
    *,
    label: str,
    cost: Cost | None = None,
) -> KeySlot:
    """Let `passphrase` open the repository too."""
    if not label.strip() or len(label) > _MAX_LABEL or not label.isprintable():
        raise InvalidInput(f"a key's label is 1 to {_MAX_LABEL} printable characters")
    slot = make_slot(repo.keys.master, passphrase, cost or Argon2Cost(), label=label)

    def add(config: Config) -> Config:
        changed = replace(config, slots=(*config.slots, slot))
        full = len(changed.slots) > MAX_SLOTS
        if full or len(changed.encode()) > MAX_CONFIG:
            raise InvalidInput(
                f"the repository has {len(config.slots)} keys and no room for another",
                hint="remove one that nobody uses: lobstertrap key list",
            )
        return changed

    _change(repo, add)
    return KeySlot(id=slot["id"], kind=slot["kind"], label=label)


def remove_key(repo: Repository, prefix: str, *, keep: SecretValue) -> KeySlot:
    """Take away the slot whose id starts with `prefix`.

    `keep` must open the repository without it, so nobody locks himself out: `Refused`.
    Whoever once had the passphrase may have the master key: it is not changed.
    """
    removed: list[KeySlot] = []

    def remove(config: Config) -> Config:
        found = [s for s in config.slots if str(s.get("id", "")).startswith(prefix)]
        if len(prefix) < _MIN_PREFIX or len(found) > 1:
            raise InvalidInput(
                f"'{prefix}' is too short to name one key",
                hint="list the keys to see their ids: lobstertrap key list",
            )
        if not found:
            raise NotFound(
                f"no key '{prefix}'",
                hint="list the keys to see their ids: lobstertrap key list",
            )
        (slot,) = found
        rest = replace(config, slots=tuple(s for s in config.slots if s is not slot))
        if not rest.opens(keep):
            raise Refused(
                f"key '{prefix}' is the only one by which you can open the repository",
                hint="add another key and use it in lobstertrap.toml first",
            )
        removed[:] = [
            KeySlot(
                id=str(slot["id"]),
                kind=str(slot.get("kind", "")),
                label=str(slot.get("label", "")),
            )
        ]
        return rest

    _change(repo, remove)
    return removed[0]


def _read(repo: Repository) -> tuple[Config, str]:
    found = repo.store.get(CONFIG_KEY)
    return parse_config(found.data), found.etag


def _change(repo: Repository, change: Callable[[Config], Config]) -> None:
    require_conditional_writes(repo.store)
    for _ in range(_ATTEMPTS):
        config, etag = _read(repo)
        try:
            repo.store.put(CONFIG_KEY, change(config).encode(), if_match=etag)
        except Conflict:  # somebody else has changed the slots: once more on theirs
            continue
        return
    raise Unavailable("the repository's keys are being changed by somebody else")
