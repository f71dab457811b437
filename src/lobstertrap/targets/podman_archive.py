"""A loadable image archive, written without an engine: layers, config and manifest."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import marshal
import os
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from lobstertrap.errors import Unavailable

Fill = Callable[["Layer"], None]

_CHUNK = 1 << 20
_NEVER_CHECKED = 0b01  # PEP 552: named by a hash that nobody compares
_PLAIN_MARSHAL = 2  # without references, which depend on what else is in memory
_CREATED = "2000-01-01T00:00:00Z"  # one date, so that equal files are equal images
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


class Layer:
    """One layer while it is written: a tar archive in a fixed order, owned by root."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._seen: set[str] = set()

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add a directory and what is above it."""
        path = PurePosixPath(name)
        if str(path) == "/" or str(path) in self._seen:
            return
        self.directory(str(path.parent))
        self._add(str(path), type=tarfile.DIRTYPE, mode=mode)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._parent(name)
        self._add(name, type=tarfile.SYMTYPE, linkname=target, mode=0o777)

    def text(self, name: str, content: str) -> None:
        """Add a small file."""
        self._parent(name)
        self._add(name, content=io.BytesIO(content.encode()), size=len(content))

    def file(self, name: str, source: Path) -> None:
        """Add a copy of `source`; its time is kept, for compiled modules check it."""
        self._parent(name)
        with source.open("rb") as content:
            found = os.fstat(content.fileno())
            self._add(
                name,
                content=content,
                size=found.st_size,
                mode=0o755 if found.st_mode & 0o100 else 0o644,
                mtime=int(found.st_mtime),
            )

    def module(self, name: str, source: Path) -> None:
        """Add a copy of `source` and what this Python makes of it, so that it starts.

        A root file system that is read-only is compiled anew at every start: seconds.
        """
        self.file(name, source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # somebody else's source
            try:
                code = compile(source.read_bytes(), name, "exec", dont_inherit=True)
            except (SyntaxError, ValueError):
                return  # for another version of Python, and never imported
        content = b"".join(
            (
                importlib.util.MAGIC_NUMBER,
                _NEVER_CHECKED.to_bytes(4, "little"),
                bytes(8),
                marshal.dumps(code, _PLAIN_MARSHAL),
            )
        )
        compiled = importlib.util.cache_from_source(name)
        self._parent(compiled)
        self._add(compiled, content=io.BytesIO(content), size=len(content))

    def tree(self, name: str, source: Path, *, without: Callable[[Path], bool]) -> None:
        """Add everything below `source`, except where `without` says so."""
        for item in sorted(source.iterdir()):
            below = f"{name}/{item.name}"
            if without(item):
                continue
            if item.is_symlink():
                self.link(below, str(item.readlink()))
            elif item.is_dir():
                self.tree(below, item, without=without)
            elif item.is_file():
                self.file(below, item)

    def _parent(self, name: str) -> None:
        self.directory(str(PurePosixPath(name).parent))

    def _add(
        self,
        name: str,
        *,
        content: IO[bytes] | None = None,
        mode: int = 0o644,
        **fields: Any,
    ) -> None:
        if name in self._seen:
            return
        self._seen.add(name)
        info = tarfile.TarInfo(name.lstrip("/"))
        info.mode = mode
        for key, value in fields.items():
            setattr(info, key, value)
        self._archive.addfile(info, content)


def platform() -> str:
    """Return this machine's platform as in OCI: `linux/amd64`."""
    machine = os.uname().machine
    return f"{sys.platform}/{_MACHINES.get(machine, machine)}"


def write_image(
    out: IO[bytes], *, tag: str, layers: Iterable[Fill], env: Mapping[str, str]
) -> str:
    """Write a loadable image archive (docker format) and return its identity.

    The same files give the same identity. Raises `Unavailable` off Linux.
    """
    if sys.platform != "linux":
        raise Unavailable(
            "an image can be made of this machine's own Python on Linux only",
            hint="use a machine with a registry in reach, or build it on Linux",
        )
    with (
        tarfile.open(fileobj=out, mode="w") as archive,
        tempfile.TemporaryDirectory() as directory,
    ):
        blobs = [
            _write_layer(Path(directory) / f"{number}.tar.gz", fill)
            for number, fill in enumerate(layers)
        ]
        for blob, _ in blobs:
            info = tarfile.TarInfo(blob.name)
            info.size = blob.stat().st_size
            with blob.open("rb") as content:
                archive.addfile(info, content)
        config = _config([digest for _, digest in blobs], env)
        identity = hashlib.sha256(config).hexdigest()
        names = [blob.name for blob, _ in blobs]
        manifest = [{"Config": f"{identity}.json", "RepoTags": [tag], "Layers": names}]
        _add_json(archive, f"{identity}.json", config)
        _add_json(archive, "manifest.json", json.dumps(manifest).encode())
    return f"sha256:{identity}"


def _add_json(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _write_layer(blob: Path, fill: Fill) -> tuple[Path, str]:
    """Write one compressed layer; return it and the digest of what is in it."""
    with tempfile.TemporaryFile() as plain:
        with tarfile.open(fileobj=plain, mode="w") as archive:
            fill(Layer(archive))
        plain.seek(0)
        total = hashlib.sha256()
        with gzip.GzipFile(blob, "wb", compresslevel=1, mtime=0) as packed:
            while piece := plain.read(_CHUNK):
                total.update(piece)
                packed.write(piece)
    return blob, total.hexdigest()


def _config(digests: list[str], env: Mapping[str, str]) -> bytes:
    config = {
        "architecture": platform().partition("/")[2],
        "os": "linux",
        "created": _CREATED,
        "config": {
            "Env": [f"{key}={value}" for key, value in env.items()],
            "Cmd": ["python3"],
        },
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{digest}" for digest in digests],
        },
        "history": [{"created": _CREATED, "created_by": "lobstertrap"}] * len(digests),
    }
    return json.dumps(config).encode()
