"""The node's first process: starts every part, restarts what ends, reaps what is left.

It is process 1 of a PID namespace and has a mount namespace of its own, so that with it
ends every part and every container, and every mount is gone (`Cluster` starts it so).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from tests.cluster.layout import Layout, commands, environment

_PAUSE = 0.5  # seconds before a part that ended is started again


def main() -> NoReturn:
    """Run until SIGTERM."""
    layout = Layout.load(Path(sys.argv[1]))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    _hide_shared_directories()
    parts = commands(layout)
    running = {_start(layout, name, argv): name for name, argv in parts.items()}
    while True:
        ended, _ = os.wait()
        name = running.pop(ended, None)
        if name is not None:  # otherwise the child of a part that has ended
            time.sleep(_PAUSE)
            running[_start(layout, name, parts[name])] = name


def _hide_shared_directories() -> None:
    """Give the parts a /var and a /run of their own: some of their paths are fixed."""
    for place in ("/var/lib", "/var/log", "/run"):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)


def _start(layout: Layout, name: str, argv: list[str]) -> int:
    log = layout.path("log", f"{name}.log").open("ab")
    with log:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(layout),
            cwd=layout.directory,
            start_new_session=True,
        ).pid


if __name__ == "__main__":
    main()
