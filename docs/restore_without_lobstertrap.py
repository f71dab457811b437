#!/usr/bin/env python3
"""A reader of Lobster Trap repositories that needs nothing of Lobster Trap.

It was written from docs/repository-format.md alone, so that nobody's data depends on
this program's being there. Copy the bucket to a directory with any tool, then

    pip install blake3 cryptography msgpack zstandard
    python restore_without_lobstertrap.py BUCKET                          # list
    python restore_without_lobstertrap.py BUCKET SNAPSHOT NEW_DIRECTORY  # restore

BUCKET is the directory that holds `repository/`; SNAPSHOT is an id, or the beginning of
one, as the list shows it. The passphrase is asked for, or read from the environment
variable LOBSTERTRAP_PASSPHRASE. It reads the packs themselves and no index, and checks
every digest on its way. Files get the owners that the agent's spec names; only root can
give them.
"""

import argparse
import functools
import getpass
import itertools
import json
import os
import stat
import struct
import sys
import time
from pathlib import Path

import msgpack
import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

COSTS = ("iterations", "lanes", "memory_cost", "n", "r", "p")
HEADER, MEBIBYTE = 24, 1 << 20
TRAILER_PART = 2**96 - 1
REGULAR, DIRECTORY, SYMLINK, FIFO, HARD_LINK, CHARACTER, BLOCK = range(7)
SPECIAL = {FIFO: stat.S_IFIFO, CHARACTER: stat.S_IFCHR, BLOCK: stat.S_IFBLK}


class Damaged(SystemExit):
    """The repository does not hold what it should; uncaught, the message is printed."""


def derive(master, purpose):
    return blake3(master, derive_key_context="lobstertrap 1 " + purpose).digest()


def master_key(config, passphrase):
    """Unwrap the master key with the first slot that the passphrase opens."""
    if config["version"] != 1:
        raise Damaged("a newer Lobster Trap wrote this repository")
    identity = bytes.fromhex(config["id"])
    for slot in config["slots"]:
        if slot["kind"] not in ("argon2id", "scrypt"):
            continue
        cost = {name: slot[name] for name in COSTS if name in slot}
        memory = cost.get("memory_cost", 0) << 10 or 128 * cost["n"] * cost["r"]
        if memory > 1 << 30 or max(cost.get("p", 1), cost.get("iterations", 1)) > 16:
            raise Damaged("a key slot asks for too much memory")
        salt, wrapped = bytes.fromhex(slot["salt"]), bytes.fromhex(slot["wrapped"])
        kdf = Scrypt if slot["kind"] == "scrypt" else Argon2id
        kek = kdf(salt=salt, length=32, **cost).derive(passphrase.encode())
        bound = b"lobstertrap slot 1\0" + identity + slot["kind"].encode()
        try:
            master = AESGCM(kek).decrypt(bytes(12), wrapped, bound)
        except InvalidTag:
            continue
        if derive(master, "repository id")[:16] == identity:
            return master
    raise Damaged("no key slot opens with this passphrase")


class Sealed:
    """One encrypted object; its parts are decrypted by number."""

    def __init__(self, path, kind, key):
        self.path, self.size = path, path.stat().st_size
        self.header = self.read(0, HEADER)
        expected = bytes.fromhex(path.name.split(".")[-1])
        if self.header != b"LTRP" + kind + b"\1\0\0" + expected:
            raise Damaged(f"{path} is damaged, or a newer Lobster Trap wrote it")
        self.cipher = AESGCM(blake3(self.header, key=key).digest())

    def read(self, offset, length):
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def part(self, number, offset, length):
        nonce, sealed = number.to_bytes(12, "big"), self.read(offset, length)
        try:
            return self.cipher.decrypt(nonce, sealed, self.header + nonce)
        except InvalidTag:
            raise Damaged(f"part {number} of {self.path} is damaged") from None


class Pack(Sealed):
    """Blobs in segments, and the trailer that says where they are."""

    def __init__(self, path, key):
        super().__init__(path, b"P", key)
        footer = self.read(max(0, self.size - 8), 8)
        stored = int.from_bytes(footer[:4], "little")
        if footer[4:] != b"LTRE" or stored > self.size - HEADER - 8:
            raise Damaged(f"pack {path} has no footer: it was cut off")
        trailer = self.part(TRAILER_PART, self.size - 8 - stored, stored)
        _, s, b = struct.unpack_from("<3I", trailer)
        numbers = struct.unpack_from(f"<{3 * s}I", trailer, 12)
        self.stored, self.plain = numbers[:s], numbers[s : 2 * s]
        start = 12 + 12 * s
        ids = [trailer[i : i + 16] for i in range(start, start + 16 * b, 16)]
        lengths = struct.unpack_from(f"<{b}I", trailer, start + 16 * b)
        blobs, self.blobs = zip(ids, lengths, strict=True), []
        for segment, count in enumerate(numbers[2 * s :]):
            offset = 0
            for blob, length in itertools.islice(blobs, count):
                self.blobs.append((blob, segment, offset, length))
                offset += length

    def segment(self, number):
        offset = HEADER + sum(self.stored[:number])
        data = self.part(number, offset, self.stored[number])
        if len(data) < self.plain[number]:
            data = zstandard.ZstdDecompressor().decompress(data)
        return data


class Repository:
    """A directory copy of a bucket, opened."""

    def __init__(self, bucket, passphrase):
        self.root = Path(bucket) / "repository"
        config = json.loads((self.root / "config").read_text("utf-8"))
        self.key = derive(master_key(config, passphrase), "encryption")
        self.where, self.segment = {}, functools.lru_cache(64)(Pack.segment)

    def snapshots(self):
        """Yield the manifests, oldest first: their names begin with their times."""
        for path in sorted((self.root / "snapshots").iterdir()):
            sealed = Sealed(path, b"S", self.key)
            plain = sealed.part(0, HEADER, sealed.size - HEADER)
            if plain[0] == 1:
                plain = b"\0" + zstandard.ZstdDecompressor().decompress(plain[5:])
            manifest = msgpack.unpackb(plain[1:])
            if manifest["version"] != 1:
                raise Damaged(f"a newer Lobster Trap wrote {path}")
            yield manifest

    def read_trailers(self):
        """Learn where every blob is; a damaged pack is named and passed over."""
        for path in sorted((self.root / "packs").glob("*/*")):
            try:
                pack = Pack(path, self.key)
            except Damaged as error:
                print(f"warning: {error}", file=sys.stderr)
                continue
            for blob, *place in pack.blobs:
                self.where.setdefault(blob, (pack, *place))
            pack.blobs = None

    def blob(self, name):
        if name not in self.where:
            raise Damaged(f"blob {name.hex()} is missing")
        pack, segment, offset, length = self.where[name]
        return self.segment(pack, segment)[offset : offset + length]

    def entries(self, manifest):
        """Yield every entry with its content, proven by the tree digest."""
        tree = blake3()
        for branch, _ in manifest["branches"]:
            for page, digest, _, _ in msgpack.unpackb(self.blob(branch)):
                data = self.blob(page)
                reader = msgpack.Unpacker(max_buffer_size=len(data))
                reader.feed(data)
                group = reader.unpack()
                if blake3(data[: reader.tell()]).digest() != digest:
                    raise Damaged(f"page {page.hex()} is not what its branch says")
                contents = iter(reader.unpack())
                for entry in group:
                    yield entry, next(contents) if entry[1] == REGULAR else None
                tree.update(digest)
        if tree.digest() != manifest["tree_digest"]:
            raise Damaged("the tree is not the one that was snapshotted")

    def pieces(self, content):
        """Yield the content of a file: bytes, or the length of a hole."""
        if isinstance(content, list):
            content = b"".join(self.blob(page) for page in content)
        if len(content) == 16:
            yield self.blob(content)
            return
        for i in range(0, len(content), 20):
            name, length = content[i : i + 16], content[i + 16 : i + 20]
            yield self.blob(name) if any(name) else int.from_bytes(length, "little")


def content_digest(path):
    """Return the BLAKE3 of up to 1 MiB, above it of the blocks' BLAKE3s."""
    with open(path, "rb") as file:
        pieces = iter(lambda: file.read(MEBIBYTE), b"")
        blocks = [blake3(piece).digest() for piece in pieces]
    return blocks[0] if len(blocks) == 1 else blake3(b"".join(blocks)).digest()


def write_file(repository, path, size, digest, content):
    with open(path, "xb") as file:
        for piece in repository.pieces(content):
            if isinstance(piece, bytes):
                file.write(piece)
            else:
                file.seek(piece, os.SEEK_CUR)
        file.truncate()
    if os.path.getsize(path) != size or content_digest(path) != digest:
        raise Damaged(f"{path!r} is not what was snapshotted")


def set_attributes(path, entry):
    """Give a file everything but its content, as far as this user may."""
    kind, mode, uid, gid, mtime, xattrs = entry[1:7]
    if os.geteuid() == 0:
        os.lchown(path, uid, gid)
    if kind != SYMLINK:
        os.chmod(path, mode)
    for name, value in xattrs or ():
        try:
            os.setxattr(path, name, value, follow_symlinks=False)
        except OSError as error:
            print(f"warning: {path!r}: {name!r}: {error}", file=sys.stderr)
    os.utime(path, ns=(mtime, mtime), follow_symlinks=False)


def make(repository, root, path, entry, content):
    """Make anything but a directory."""
    kind, more = entry[1], entry[7:]
    if kind == REGULAR:
        write_file(repository, path, *more, content)
    elif kind == SYMLINK:
        os.symlink(*more, path)
    elif kind == HARD_LINK:
        os.link(os.path.join(root, *more), path, follow_symlinks=False)
    elif kind in SPECIAL:
        os.mknod(path, SPECIAL[kind] | 0o600, os.makedev(*more) if more else 0)
    else:
        raise Damaged(f"{path!r} has the unknown type {kind}")


def restore(repository, manifest, destination):
    os.umask(0o077)
    os.makedirs(destination)  # fails when it exists: nothing is ever overwritten
    root, made, directories = os.fsencode(destination), {b"": DIRECTORY}, []
    for entry, content in repository.entries(manifest):
        name, kind = entry[:2]
        parent, _, last = name.rpartition(b"/")
        # What is below anything but a directory made here would be written elsewhere.
        plain = last not in {b"", b".", b".."} and b"\0" not in last
        linked = kind != HARD_LINK or made.get(entry[7]) == REGULAR
        if made.get(parent) != DIRECTORY or not plain or not linked:
            raise Damaged(f"{name!r} would escape from the directory")
        made[name] = kind
        path = os.path.join(root, name)
        if kind == DIRECTORY:
            os.mkdir(path)
            directories.append((path, entry))
        else:
            make(repository, root, path, entry, content)
            set_attributes(path, entry)
    for directory in reversed(directories):
        set_attributes(*directory)


def main():
    parser = argparse.ArgumentParser(description="Read a Lobster Trap repository.")
    parser.add_argument("bucket")
    parser.add_argument("snapshot", nargs="?", default="")
    parser.add_argument("directory", nargs="?")
    wanted = parser.parse_args()
    passphrase = os.environ.get("LOBSTERTRAP_PASSPHRASE") or getpass.getpass()
    repository = Repository(wanted.bucket, passphrase)
    snapshots = repository.snapshots()
    found = [m for m in snapshots if m["id"].hex().startswith(wanted.snapshot)]
    if wanted.directory is None:
        for one in found:
            when = time.ctime(one["created_at"])
            print(one["id"].hex(), when, one["agent"], one["status"], sep="  ")
    elif len(found) != 1:
        raise Damaged(f"{len(found)} snapshots begin with {wanted.snapshot}")
    else:
        repository.read_trailers()
        restore(repository, found[0], wanted.directory)
        print("restored, and every digest agrees")


if __name__ == "__main__":
    main()
