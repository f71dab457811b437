"""Reading ahead: the kernel is asked for files of a directory before they are read.

What nobody has used for a while is not in the page cache, and a thread that reads one
small file after the other waits for the disk once for each.
"""

from __future__ import annotations

import os
import resource
import stat
from contextlib import suppress

from lobstertrap.repository.scan import Run
from lobstertrap.repository.status import FILE_FLAGS

AHEAD = 32
"""Files that are asked for at once."""

_MOST = 1 << 20
"""Bytes of one file: from there on the kernel sees that it is read in order."""


class ReadAhead:
    """Asks for the next files of a run, as long as reading goes to the disk."""

    def __init__(self) -> None:
        self._blocks = _blocks_read()

    def ask(self, run: Run, start: int) -> None:
        """Ask for `AHEAD` files from `start` on; does nothing while all is in memory.

        What is asked for counts as read, so this goes on until nothing was needed.
        """
        blocks = _blocks_read()
        cold, self._blocks = blocks != self._blocks, blocks
        if not cold:
            return
        stop = start + AHEAD
        for name, status in zip(
            run.names[start:stop], run.stats[start:stop], strict=True
        ):
            if stat.S_ISREG(status.st_mode) and status.st_size:
                with suppress(OSError):  # whoever reads it will tell
                    _ask_for(name, run.parent, min(status.st_size, _MOST))


def _ask_for(name: bytes, parent: int, length: int) -> None:
    handle = os.open(name, FILE_FLAGS, dir_fd=parent)
    try:
        os.posix_fadvise(handle, 0, length, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(handle)


def _blocks_read() -> int:
    """Return how much this thread has had the disk read, in blocks."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock
