"""An agent's image before it exists: its build context, and the digest that names it.

Pure: it reads the context and nothing else, so the same files, build arguments and
modes give the same tag on every machine, and a target builds only what it has not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lobstertrap.agent import AgentSpec, Build
from lobstertrap.errors import AccessDenied, InvalidInput, NotFound

_MTIME = 946_684_800  # 2000-01-01; before 1980 zip files cannot be written
_IGNORE_FILES = (".containerignore", ".dockerignore")
_DIGEST_VERSION = b"lobstertrap build context 1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextEntry:
    """One file, link or directory of a build context."""

    name: str
    """Relative to the context, with slashes."""
    path: Path
    mode: int
    """Type and permissions as in `st_mode`; only owner-exec tells files apart."""


def build_args(agent: AgentSpec, extra_args: Mapping[str, str]) -> dict[str, str]:
    """Return the build arguments: the spec's, overridden by the target's."""
    return {**_build(agent).args, **extra_args}


def context_digest(agent: AgentSpec, extra_args: Mapping[str, str] = {}) -> str:
    """Return the SHA-256 (hex) over build arguments, Containerfile and context.

    Names, types, exec bits, link targets and contents count; owners and times do not.
    Raises `NotFound` and `InvalidInput` as `context_entries` does.
    """
    total = hashlib.sha256(_DIGEST_VERSION)
    for key, value in sorted(build_args(agent, extra_args).items()):
        _feed(total, b"arg", key.encode(), value.encode())
    _feed(total, b"file", _build(agent).containerfile.encode())
    with _readable(agent):
        for entry in context_entries(agent):
            mode = f"{entry.mode:o}".encode()
            _feed(total, b"entry", os.fsencode(entry.name), mode, _content(entry))
    return total.hexdigest()


def image_tag(agent: AgentSpec, extra_args: Mapping[str, str] = {}) -> str:
    """Return the name under which the built image is found again."""
    digest = context_digest(agent, extra_args)
    return f"localhost/lobstertrap/{agent.name}:{digest[:12]}"


def context_entries(agent: AgentSpec) -> list[ContextEntry]:
    """Return the context's entries sorted by name, without what is ignored.

    Raises `NotFound` when the context or the Containerfile is not there, `AccessDenied`
    when something may not be read, and `InvalidInput` for sockets, pipes and devices.
    """
    root, containerfile = _context(agent)
    ignored = _ignore_rules(root)
    with _readable(agent):
        found = _walk(root, "", ignored, always={containerfile})
        return sorted(found, key=lambda entry: entry.name)


def write_context(agent: AgentSpec, out: IO[bytes]) -> None:
    """Write the context as a tar archive, the same bytes for the same digest."""
    with (
        _readable(agent),
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for entry in context_entries(agent):
            info = tarfile.TarInfo(entry.name)
            info.mode, info.mtime = stat.S_IMODE(entry.mode), _MTIME
            if stat.S_ISLNK(entry.mode):
                info.type, info.linkname = tarfile.SYMTYPE, str(entry.path.readlink())
                archive.addfile(info)
            elif stat.S_ISDIR(entry.mode):
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                with entry.path.open("rb") as file:
                    info.size = os.fstat(file.fileno()).st_size
                    archive.addfile(info, file)


@contextlib.contextmanager
def _readable(agent: AgentSpec) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise AccessDenied(
            f"agent '{agent.name}': {error.filename} may not be read",
            hint="name it in .containerignore if the image does not need it",
        ) from error


def _build(agent: AgentSpec) -> Build:
    if agent.build is None:
        raise InvalidInput(f"agent '{agent.name}' has no build: it names an image")
    return agent.build


def _context(agent: AgentSpec) -> tuple[Path, str]:
    build = _build(agent)
    root = (agent.directory / build.context).resolve()
    if not root.is_dir():
        raise NotFound(
            f"agent '{agent.name}': no build context at {root}",
            hint="see build.context in its agent.yaml",
        )
    if not (root / build.containerfile).is_file():
        raise NotFound(
            f"agent '{agent.name}': no {build.containerfile} in {root}",
            hint="see build.containerfile in its agent.yaml",
        )
    return root, build.containerfile


def _walk(
    root: Path, below: str, ignored: _IgnoreRules, *, always: set[str]
) -> Iterator[ContextEntry]:
    with os.scandir(root / below) as found:
        for item in found:
            name = f"{below}{item.name}"
            mode = item.stat(follow_symlinks=False).st_mode
            hidden = name not in always and ignored.match(name)
            if stat.S_ISDIR(mode):
                yield from _walk(root, f"{name}/", ignored, always=always)
            if hidden:
                continue
            kind = stat.S_IFMT(mode)
            if kind not in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR):
                raise InvalidInput(
                    f"{root / name} is neither a file, a link nor a directory",
                    hint="name it in .containerignore",
                )
            yield ContextEntry(name=name, path=root / name, mode=_plain(mode))


def _plain(mode: int) -> int:
    """Return the mode without what a umask or a checkout changes."""
    if stat.S_ISLNK(mode):
        return stat.S_IFLNK | 0o777
    runs = stat.S_ISDIR(mode) or mode & stat.S_IXUSR
    return stat.S_IFMT(mode) | (0o755 if runs else 0o644)


def _content(entry: ContextEntry) -> bytes:
    if stat.S_ISLNK(entry.mode):
        return os.fsencode(entry.path.readlink())
    if stat.S_ISDIR(entry.mode):
        return b""
    with entry.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _feed(total: hashlib._Hash, *parts: bytes) -> None:
    for part in parts:
        total.update(len(part).to_bytes(8, "big"))
        total.update(part)


@dataclass(frozen=True, slots=True, kw_only=True)
class _IgnoreRules:
    """The lines of a .containerignore: the last one that matches decides."""

    rules: tuple[tuple[re.Pattern[str], bool], ...]

    def match(self, name: str) -> bool:
        ignored = False
        for pattern, hides in self.rules:
            if pattern.fullmatch(name):
                ignored = hides
        return ignored


def _ignore_rules(root: Path) -> _IgnoreRules:
    for file in _IGNORE_FILES:
        try:
            lines = (root / file).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            continue
        return _IgnoreRules(rules=tuple(_rule(line) for line in lines if _says(line)))
    return _IgnoreRules(rules=())


def _says(line: str) -> bool:
    return bool(line.strip().strip("!/")) and not line.startswith("#")


def _rule(line: str) -> tuple[re.Pattern[str], bool]:
    text = line.strip()
    hides = not text.startswith("!")
    pattern = os.path.normpath(text.lstrip("!").strip()).lstrip("/")
    return re.compile(f"{_regex(pattern)}(?:/.*)?", re.DOTALL), hides


_TOKENS = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]]*\]|\\.|.", re.DOTALL)


def _regex(pattern: str) -> str:
    """Translate a pattern as Docker and Podman understand it, rooted at the context."""
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = []
    for token in _TOKENS.findall(pattern):
        if token.startswith("[") and len(token) > 1:
            parts.append(token)
        else:
            parts.append(known.get(token) or re.escape(token.removeprefix("\\")))
    return "".join(parts)
