"""Digests that need no key: of a file's content, of a group of entries, of a tree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from zlib import crc32

import msgpack
from blake3 import blake3

from lobstertrap.repository.format import Buffer

BLOCK = 1 << 20
GROUP_MASK = (1 << 5) - 1
BRANCH_MASK = (1 << 11) - 1
MAX_GROUP = 256

_ZERO_BLOCK = blake3(bytes(BLOCK)).digest()
_ZEROS = memoryview(bytes(BLOCK))


def content_digest(content: Buffer) -> bytes:
    """Return the content digest of a file that is in memory."""
    if len(content) <= BLOCK:
        return blake3(content).digest()
    digest = ContentDigest()
    digest.update(memoryview(content))
    return digest.finish()


def join_blocks(blocks: Sequence[bytes]) -> bytes:
    """Return the content digest of a file from the BLAKE3s of its 1 MiB blocks."""
    return blocks[0] if len(blocks) == 1 else blake3(b"".join(blocks)).digest()


class ContentDigest:
    """The content digest of a file that comes in pieces.

    BLAKE3 up to 1 MiB, above it BLAKE3 over the BLAKE3s of 1 MiB blocks, so that a hole
    of any size costs almost nothing.
    """

    __slots__ = ("_block", "_blocks", "_room")

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._block = blake3()
        self._room = BLOCK

    def update(self, data: memoryview) -> None:
        """Add the next bytes."""
        size = len(data)
        position = 0
        while position < size:
            if self._room == BLOCK and size - position >= BLOCK:
                piece = data[position : position + BLOCK]
                self._blocks.append(blake3(piece).digest())
                position += BLOCK
                continue
            piece = data[position : position + self._room]
            self._block.update(piece)
            position += len(piece)
            self._room -= len(piece)
            if self._room == 0:
                self._close_block()

    def zeros(self, count: int) -> None:
        """Add `count` zero bytes."""
        while count:
            if self._room == BLOCK and count >= BLOCK:
                self._blocks.extend([_ZERO_BLOCK] * (count // BLOCK))
                count %= BLOCK
                continue
            step = min(count, self._room)
            self.update(_ZEROS[:step])
            count -= step

    def finish(self) -> bytes:
        """Return the 32 bytes."""
        if self._room < BLOCK or not self._blocks:
            self._close_block()
        return join_blocks(self._blocks)

    def _close_block(self) -> None:
        self._blocks.append(self._block.digest())
        self._block = blake3()
        self._room = BLOCK


def ends_group(path: bytes, count: int) -> bool:
    """Say whether a group of `count` entries ends after the one called `path`."""
    return not crc32(path) & GROUP_MASK or count >= MAX_GROUP


def ends_branch(path: bytes, groups: int) -> bool:
    """Say whether a branch of `groups` groups ends after the entry called `path`."""
    return not crc32(path) & BRANCH_MASK or groups >= MAX_GROUP


def group_digest(encoded_entries: bytes) -> bytes:
    """Return the digest of a group from the msgpack array of its entries."""
    return blake3(encoded_entries).digest()


def tree_digest_of(entries: Iterable[tuple[Any, ...]]) -> bytes:
    """Return the tree digest of entries in walk order."""
    tree = blake3()
    group: list[tuple[Any, ...]] = []
    pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
    for entry in entries:
        group.append(entry)
        if ends_group(entry[0], len(group)):
            tree.update(group_digest(pack(group)))
            group = []
    if group:
        tree.update(group_digest(pack(group)))
    return tree.digest()
