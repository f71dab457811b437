"""The node's binaries: built once from Go modules, kept outside the checkout."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent / "kube"
VERSION = "1.34.4"
_STAMP = "k8s.io/component-base/version"
# Debian: etcd-server containerd runc containernetworking-plugins iproute2 util-linux
_PROGRAMS = ("etcd", "containerd", "ctr", "runc", "ip", "unshare", "nsenter")
CNI_PLUGINS = Path("/usr/lib/cni")


class MissingPartError(Exception):
    """Something that the node is made of is not on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """Where the built binaries are."""

    kube: Path
    """apiserver, controller-manager, scheduler, kubelet, kubectl, provisioner."""
    pause: Path


def require_parts() -> None:
    """Raise `MissingPartError` unless all that is not built here is installed."""
    if os.geteuid() != 0:
        raise MissingPartError("a Kubernetes node needs root")
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    absent += [] if (CNI_PLUGINS / "bridge").exists() else [str(CNI_PLUGINS / "bridge")]
    if absent:
        raise MissingPartError(
            f"not installed: {', '.join(absent)} (Debian: etcd-server containerd runc "
            "containernetworking-plugins iproute2)"
        )


def built_binaries(*, build: bool = True) -> Binaries:
    """Return the binaries; builds them first if need be, which takes ten minutes.

    Raises `MissingPartError` when they are not there and may or can not be built.
    """
    directory = _cache() / f"kube-{VERSION}-{_source_digest()[:12]}"
    found = Binaries(kube=directory / "kube", pause=directory / "pause")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / "kube.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if found.kube.exists() and found.pause.exists():
            return found
        if not build:
            raise MissingPartError("kubernetes is not built yet: tests/cluster/build")
        _build(found)
    return found


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "lobstertrap"


def _source_digest() -> str:
    total = hashlib.sha256()
    for path in sorted(p for p in SOURCE.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(SOURCE)).encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _build(wanted: Binaries) -> None:
    if shutil.which("go") is None:
        raise MissingPartError("kubernetes is built with Go, which is not installed")
    sys.stderr.write(f"building Kubernetes {VERSION} (once, ten minutes) ...\n")
    minor = VERSION.split(".")[1]
    flags = f"-s -w -X {_STAMP}.gitVersion=v{VERSION}"
    flags += f" -X {_STAMP}.gitMajor=1 -X {_STAMP}.gitMinor={minor}"
    wanted.kube.parent.mkdir(exist_ok=True)
    for path, package in ((wanted.pause, "./pause"), (wanted.kube, ".")):
        new = path.with_suffix(".new")
        subprocess.run(
            [
                *("nice", "go", "build", "-p", "2", "-trimpath", "-ldflags", flags),
                *("-o", str(new), package),
            ],
            cwd=SOURCE,
            env={**os.environ, "CGO_ENABLED": "0"},
            check=True,
        )
        new.rename(path)
