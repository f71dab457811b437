"""What needs no content: links, fifos, devices, and the last touch to directories."""

from __future__ import annotations

import os
import stat as st

from lobstertrap.errors import IntegrityError
from lobstertrap.repository.attributes import DEVICES_LEFT, Attributes
from lobstertrap.repository.directories import (
    DirectoryPaths,
    in_the_way,
    look,
    remove_tree,
    temporary_name,
)
from lobstertrap.repository.entry import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    FIFO,
    MAJOR,
    MINOR,
    MODE,
    MTIME,
    PATH,
    SYMLINK,
    TARGET,
    TYPE,
    Row,
    shown,
)


def place_special(name: bytes, parent: int, row: Row, attributes: Attributes) -> bool:
    """Make a symbolic link, a fifo or a device; says whether it could be made."""
    temporary = temporary_name()
    kind = row[TYPE]
    if kind == SYMLINK:
        os.symlink(row[TARGET], temporary, dir_fd=parent)
    elif kind in (CHARACTER_DEVICE, BLOCK_DEVICE):
        form = st.S_IFCHR if kind == CHARACTER_DEVICE else st.S_IFBLK
        device = os.makedev(row[MAJOR], row[MINOR])
        try:
            os.mknod(temporary, form | 0o600, device, dir_fd=parent)
        except PermissionError:
            attributes.excuse(DEVICES_LEFT)
            return False
    else:
        os.mkfifo(temporary, 0o600, dir_fd=parent)
    attributes.apply_by_name(temporary, parent, row, link=kind == SYMLINK)
    os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    return True


def special_is_right(
    name: bytes, parent: int, row: Row, present: os.stat_result, attributes: Attributes
) -> bool:
    """Say whether a link, fifo or device is there already as it should be."""
    owner = (present.st_uid, present.st_gid)
    if owner != attributes.local_owner(row) or present.st_mtime_ns != row[MTIME]:
        return False
    if present.st_nlink > 1:
        return False
    if row[TYPE] == SYMLINK:
        return st.S_ISLNK(present.st_mode) and (
            os.fsencode(os.readlink(name, dir_fd=parent)) == row[TARGET]
        )
    form = st.S_IFIFO
    if row[TYPE] != FIFO:
        form = st.S_IFCHR if row[TYPE] == CHARACTER_DEVICE else st.S_IFBLK
        if present.st_rdev != os.makedev(row[MAJOR], row[MINOR]):
            return False
    return bool(present.st_mode == form | row[MODE])


def name_staged(staged: list[tuple[bytes, bytes]], paths: DirectoryPaths) -> None:
    """Give new directories their names, outer ones first."""
    for path, temporary in staged:
        parent, _, name = path.rpartition(b"/")
        into = paths.open(parent)
        os.rename(temporary, name, src_dir_fd=into, dst_dir_fd=into)


def finish_directories(
    rows: list[Row], paths: DirectoryPaths, attributes: Attributes
) -> None:
    """Set the attributes of directories, deepest first: nothing is made in them now."""
    for row in reversed(rows):
        handle = paths.open(row[PATH])
        attributes.apply_directory(handle, row)


def place_link(
    row: Row, paths: DirectoryPaths, sources: DirectoryPaths, *, replace: bool
) -> tuple[int, int]:
    """Make one hard link; returns how many were made and how many things removed."""
    parent, _, name = row[PATH].rpartition(b"/")
    source_parent, _, source = row[TARGET].rpartition(b"/")
    into, start = paths.open(parent), sources.open(source_parent)
    first = look(source, start)
    if first is None or not st.S_ISREG(first.st_mode):
        raise IntegrityError(f"{shown(row[PATH])} is a link to nothing")
    present = look(name, into)
    removed = 0
    if present is not None:
        if (present.st_dev, present.st_ino) == (first.st_dev, first.st_ino):
            return 0, 0
        if st.S_ISDIR(present.st_mode):
            if not replace:
                raise in_the_way(row[PATH], "a directory")
            removed = remove_tree(name, into)
    temporary = temporary_name()
    os.link(source, temporary, src_dir_fd=start, dst_dir_fd=into, follow_symlinks=False)
    os.rename(temporary, name, src_dir_fd=into, dst_dir_fd=into)
    return 1, removed
