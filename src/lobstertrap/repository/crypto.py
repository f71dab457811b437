"""The keys that come from the master key, and authenticated encryption of parts."""

from __future__ import annotations

from dataclasses import dataclass, field

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lobstertrap.errors import IntegrityError
from lobstertrap.repository.format import (
    HEADER_SIZE,
    ID_SIZE,
    TAG_SIZE,
    Buffer,
    Header,
    parse_header,
)

TRAILER_PART = (1 << 96) - 1


def derive(master: bytes, purpose: str) -> bytes:
    """Return the 32-byte key for one purpose."""
    return blake3(master, derive_key_context=f"lobstertrap 1 {purpose}").digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Everything that follows from the master key; nothing of it is ever shown."""

    repository_id: bytes
    master: bytes = field(repr=False)
    encryption: bytes = field(repr=False)
    chunk_ids: bytes = field(repr=False)
    page_ids: bytes = field(repr=False)
    chunker_seed: int = field(repr=False)
    agent_tags: bytes = field(repr=False)
    places: bytes = field(repr=False)

    @classmethod
    def from_master(cls, master: bytes) -> Keys:
        """Derive the keys of docs/repository-format.md."""
        return cls(
            repository_id=repository_id(master),
            master=master,
            encryption=derive(master, "encryption"),
            chunk_ids=derive(master, "chunk id"),
            page_ids=derive(master, "page id"),
            chunker_seed=int.from_bytes(derive(master, "chunker")[:8], "little") >> 1,
            agent_tags=derive(master, "agent tag"),
            places=derive(master, "place"),
        )

    def page_id(self, page: Buffer) -> bytes:
        """Return the id of a page."""
        return blake3(blake3(page).digest(), key=self.page_ids).digest(ID_SIZE)

    def chunk_id(self, chunk: Buffer) -> bytes:
        """Return the id of a chunk."""
        return blake3(blake3(chunk).digest(), key=self.chunk_ids).digest(ID_SIZE)

    def chunk_id_of(self, digest: bytes) -> bytes:
        """Return the id of the chunk whose BLAKE3 is `digest`."""
        return blake3(digest, key=self.chunk_ids).digest(ID_SIZE)

    def agent_tag(self, agent: str) -> str:
        """Return the 8 hex digits by which an agent's snapshots are grouped."""
        return blake3(agent.encode(), key=self.agent_tags).hexdigest(4)

    def place(self, *marks: object) -> bytes:
        """Return the mark of a place: a file system and a directory on it."""
        text = "\0".join(str(mark) for mark in marks).encode()
        return blake3(text, key=self.places).digest(ID_SIZE)

    def secret_mark(self, *parts: str) -> str:
        """Return what tells two values of one secret apart; it says nothing of either.

        Nobody without the master key can try values against it.
        """
        key = derive(self.master, "secret mark")
        return blake3("\0".join(parts).encode(), key=key).hexdigest(16)

    def cipher(self, header: bytes) -> ObjectCipher:
        """Return the cipher of the object that starts with `header`."""
        return ObjectCipher(header, blake3(header, key=self.encryption).digest())


def repository_id(master: bytes) -> bytes:
    """Return the id that proves which repository a master key belongs to."""
    return derive(master, "repository id")[:ID_SIZE]


class ObjectCipher:
    """Seals and opens the numbered parts of one object."""

    __slots__ = ("_aead", "_header")

    def __init__(self, header: bytes, key: bytes) -> None:
        self._header = header
        self._aead = AESGCM(key)

    def seal(self, part: int, plain: Buffer) -> bytes:
        """Return ciphertext and tag; `encrypt_into` is the call without the GIL."""
        nonce = part.to_bytes(12, "big")
        sealed = bytearray(memoryview(plain).nbytes + TAG_SIZE)
        self._aead.encrypt_into(nonce, plain, self._header + nonce, sealed)
        return bytes(sealed)

    def open(self, part: int, sealed: Buffer) -> bytearray:
        """Return the plaintext; raises `IntegrityError` when a single bit differs."""
        nonce = part.to_bytes(12, "big")
        view = memoryview(sealed)
        if view.nbytes < TAG_SIZE:
            raise IntegrityError("an encrypted part is truncated")
        plain = bytearray(view.nbytes - TAG_SIZE)
        try:
            self._aead.decrypt_into(nonce, view, self._header + nonce, plain)
        except InvalidTag:
            raise IntegrityError(
                "an encrypted part was damaged or belongs elsewhere"
            ) from None
        return plain


def seal_object(keys: Keys, header: Header, plain: Buffer) -> list[bytes]:
    """Return the pieces of an index or snapshot object."""
    head = header.encode()
    return [head, keys.cipher(head).seal(0, plain)]


def open_object(
    keys: Keys, data: bytes, *, kind: bytes, object_id: bytes, key: str
) -> bytearray:
    """Return the plaintext of an index or snapshot object called `key`."""
    head = parse_header(data, kind=kind, object_id=object_id, key=key)
    try:
        return keys.cipher(head).open(0, memoryview(data)[HEADER_SIZE:])
    except IntegrityError as error:
        raise IntegrityError(f"object '{key}': {error.message}") from None
