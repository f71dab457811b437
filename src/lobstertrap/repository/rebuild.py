"""One pass of a restore: what is right on the disk is kept, the rest is written."""

from __future__ import annotations

import os
import stat as st
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from lobstertrap.errors import IntegrityError
from lobstertrap.job import OnProgress, Progress
from lobstertrap.repository.attributes import Attributes
from lobstertrap.repository.chunker import WHOLE
from lobstertrap.repository.directories import (
    Directory,
    DirectoryPaths,
    in_the_way,
    is_temporary,
    look,
    make_directory,
    remove_tree,
)
from lobstertrap.repository.entry import (
    DIRECTORY,
    FILE,
    HARD_LINK,
    MODE,
    MTIME,
    PATH,
    SIZE,
    TYPE,
    Row,
    shown,
)
from lobstertrap.repository.exclude import Exclude
from lobstertrap.repository.filling import Filler
from lobstertrap.repository.finishing import (
    finish_directories,
    name_staged,
    place_link,
    place_special,
    special_is_right,
)
from lobstertrap.repository.format import ID_SIZE
from lobstertrap.repository.index import Index
from lobstertrap.repository.patching import open_patch
from lobstertrap.repository.placer import Target
from lobstertrap.repository.repository import Repository
from lobstertrap.repository.scan import belongs_to_file_system
from lobstertrap.repository.snapshot import Snapshot
from lobstertrap.repository.status import open_quietly
from lobstertrap.repository.tree import Known
from lobstertrap.repository.written import Written


@dataclass(slots=True)
class _Level:
    """A directory of the pass: what was in it, and what of that the snapshot has."""

    directory: Directory
    present: set[bytes]
    swept: set[bytes]
    """Temporary names that a killed restore left, unless they are used again."""
    wanted: set[bytes] = field(default_factory=set)


class Rebuild:
    """The pass; it may be run again with some paths forced to be written."""

    def __init__(
        self,
        repo: Repository,
        index: Index,
        *,
        attributes: Attributes,
        excludes: Mapping[str, Exclude],
        snapshot: Snapshot,
        on_progress: OnProgress,
        in_place: bool = False,
    ) -> None:
        self._repo = repo
        self._in_place = in_place
        self._index = index
        self._attributes = attributes
        self._excludes = excludes
        self._snapshot = snapshot
        self._on_progress = on_progress
        self._seen_files = 0
        self._seen_bytes = 0
        self.written = Written()
        """Files that were read back when they were written."""
        self.files_written = 0
        self.bytes_written = 0
        self.fetched_bytes = 0
        self.deleted = 0

    def run(
        self,
        entries: Iterable[Known],
        handles: Mapping[str, int],
        *,
        delete_extra: bool,
        forced: frozenset[bytes],
    ) -> None:
        """Go over all entries once."""
        self._roots = {volume.encode(): handle for volume, handle in handles.items()}
        self._delete = delete_extra
        self._forced = forced
        self._levels: list[_Level] = []
        self._directories: list[Row] = []
        self._links: list[Row] = []
        self._claimed: set[tuple[int, int]] = set()
        self._staged: list[tuple[bytes, bytes]] = []
        self._seen_files = self._seen_bytes = 0
        self._filler = Filler(
            self._repo, self._index, self._attributes, self.written, self._report
        )
        try:
            for number, known in enumerate(entries):
                self._entry(number, known)
            self._leave_until(b"")
            self._filler.finish()
        except BaseException:
            self._filler.abandon()
            for level in self._levels:
                level.directory.release()
            raise
        self.fetched_bytes += self._filler.fetched_bytes
        self._finish()

    # Entries

    def _entry(self, number: int, known: Known) -> None:
        row = known.row
        path, kind = row[PATH], row[TYPE]
        parent, _, name = path.rpartition(b"/")
        self._leave_until(parent)
        if kind == DIRECTORY:
            self._enter(path, name, row)
            return
        level = self._levels[-1]
        level.wanted.add(name)
        self._seen_files += 1
        if kind == FILE:
            self._file(level, name, number, known)
            self._seen_bytes += row[SIZE]
        elif kind == HARD_LINK:
            self._links.append(row)
        else:
            self._special(level, name, row)

    def _enter(self, path: bytes, name: bytes, row: Row) -> None:
        if self._levels:
            above = self._levels[-1]
            above.wanted.add(name)
            directory = make_directory(
                above.directory, name, path, replace=self._delete
            )
        else:
            if path not in self._roots:
                raise IntegrityError(f"{shown(path)} is in no volume of the snapshot")
            directory = Directory(path, os.dup(self._roots[path]), fresh=False)
        if directory.staged:
            self._levels[-1].swept.discard(directory.staged)
            self._staged.append((path, directory.staged))
        present: set[bytes] = set()
        swept: set[bytes] = set()
        if not directory.fresh:
            for text in os.listdir(directory.handle):  # noqa: PTH208 - by handle
                raw = os.fsencode(text)
                (swept if is_temporary(text) else present).add(raw)
        self._levels.append(_Level(directory, present, swept))
        self._directories.append(row)

    def _leave_until(self, parent: bytes) -> None:
        while self._levels and self._levels[-1].directory.path != parent:
            level = self._levels.pop()
            for name in level.swept - level.wanted:
                remove_tree(name, level.directory.handle)
            if self._delete:
                self._delete_extra(level)
            level.directory.release()

    def _delete_extra(self, level: _Level) -> None:
        extra = level.present - level.wanted
        if not extra:
            return
        volume, _, below = level.directory.path.partition(b"/")
        exclude = self._excludes[volume.decode()]
        for name in extra:
            status = look(name, level.directory.handle)
            if status is None:
                continue
            path = below + b"/" + name if below else name
            directory = st.S_ISDIR(status.st_mode)
            if exclude.matches(path, directory=directory):
                continue
            if belongs_to_file_system(path, status):
                continue
            self.deleted += remove_tree(name, level.directory.handle)

    def _clear_way(self, level: _Level, name: bytes, row: Row) -> os.stat_result | None:
        """Return what has the entry's name now; a directory is removed or refused."""
        if name not in level.present:
            return None
        present = look(name, level.directory.handle)
        if present is not None and st.S_ISDIR(present.st_mode):
            if not self._delete:
                raise in_the_way(row[PATH], "a directory")
            self.deleted += remove_tree(name, level.directory.handle)
            return None
        return present

    # Files

    def _file(self, level: _Level, name: bytes, number: int, known: Known) -> None:
        row, content = known.row, known.content
        present = self._clear_way(level, name, row)
        if present is not None and st.S_ISREG(present.st_mode):
            keep = self._keep(level, name, row, present)
        else:
            present, keep = None, False
        if keep:
            return
        if content is None:
            raise IntegrityError(f"{shown(row[PATH])} has no content")
        self.files_written += 1
        self.written.expect(number)
        if present is not None and self._patched(level, name, number, known, present):
            return
        target = Target(row, name, level.directory, number)
        self.bytes_written += row[SIZE]
        alone = present is None or row[SIZE] <= WHOLE
        if alone and isinstance(content, bytes) and len(content) == ID_SIZE:
            self._filler.add_whole(target, content, row[SIZE])
            return
        old = -1
        if present is not None and present.st_size > WHOLE:
            old = self._open_present(level, name)
        try:
            self._filler.add_parts(target, content, old)
        finally:
            if old >= 0:
                os.close(old)

    def _patched(
        self,
        level: _Level,
        name: bytes,
        number: int,
        known: Known,
        present: os.stat_result,
    ) -> bool:
        """Change a file where it is, if that was asked for and can be."""
        row, content = known.row, known.content
        if content is None or not self._in_place:
            return False
        if self._filler.has_holes(row, content):
            return False
        owner = self._attributes.local_owner(row)
        patch = open_patch(
            row, number, name, level.directory, present=present, owner=owner
        )
        if patch is None:
            return False
        self.bytes_written += self._filler.add_parts(patch, content, patch.handle)
        return True

    def _keep(
        self, level: _Level, name: bytes, row: Row, present: os.stat_result
    ) -> bool:
        """Keep a file that looks right; the reading back at the end proves it."""
        same = present.st_size == row[SIZE] and present.st_mtime_ns == row[MTIME]
        if not same or row[PATH] in self._forced:
            return False
        if present.st_nlink > 1:
            inode = (present.st_dev, present.st_ino)
            if inode in self._claimed:  # two names here, two files in the snapshot
                return False
            self._claimed.add(inode)
        owner = self._attributes.local_owner(row)
        if (present.st_uid, present.st_gid) != owner or (
            present.st_mode & 0o7777 != row[MODE]
        ):
            handle = self._open_present(level, name)
            if handle < 0:
                return False
            try:
                self._attributes.apply_existing(handle, row, present)
            except PermissionError:  # somebody else's: a file of our own replaces it
                return False
            finally:
                os.close(handle)
        return True

    @staticmethod
    def _open_present(level: _Level, name: bytes) -> int:
        try:
            return open_quietly(name, level.directory.handle)
        except OSError:
            return -1

    def _special(self, level: _Level, name: bytes, row: Row) -> None:
        present = self._clear_way(level, name, row)
        parent = level.directory.handle
        if (
            present is None
            or row[PATH] in self._forced
            or not special_is_right(name, parent, row, present, self._attributes)
        ):
            self.files_written += place_special(name, parent, row, self._attributes)

    def _finish(self) -> None:
        with (
            closing(DirectoryPaths(self._roots)) as paths,
            closing(DirectoryPaths(self._roots)) as sources,
        ):
            name_staged(self._staged, paths)
            for row in self._links:
                made, removed = place_link(row, paths, sources, replace=self._delete)
                self.files_written += made
                self.deleted += removed
            finish_directories(self._directories, paths, self._attributes)

    def _report(self) -> None:
        self._on_progress(
            Progress(
                phase="write",
                done_bytes=self._seen_bytes,
                total_bytes=self._snapshot.bytes,
                done_files=self._seen_files,
                total_files=self._snapshot.files,
            )
        )
