"""A command that ends with the process that starts it, however that one ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


def tied(command: Sequence[str]) -> list[str]:
    """Return `command` with PR_SET_PDEATHSIG set before it takes its place.

    The signal comes when the *thread* that started it ends: start it from one that
    lives as long as it is wanted (the main one). Does nothing but run the command
    where there is no such signal (anything but Linux).
    """
    return [sys.executable, "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
