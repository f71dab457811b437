"""The programs that are compared: one class each, all with the same two verbs."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from benchmarks.measure import (
    ACCESS,
    BUCKET,
    SECRET,
    Measured,
    Store,
    find_rclone,
    measure,
)

KEY = "benchmark"
LEVEL = 3


class Program(Protocol):
    """One of the programs that are compared, with a fresh store."""

    name: str
    needs: tuple[str, ...]
    """Programs that must be installed."""
    restores: bool
    """Whether there is more to it than a first snapshot."""

    def __init__(self, store: Store, work: Path) -> None: ...

    def snapshot(self, source: Path) -> Measured:
        """Take a snapshot."""

    def restore(self, into: Path) -> Measured:
        """Restore the latest one."""


def our_store(store: Store, prefix: str) -> dict[str, str]:
    """Return a store as our own programs take it (StoreSettings)."""
    if store.endpoint is None:
        return {"url": store.directory.joinpath(prefix).as_uri()}
    return {
        "url": f"s3://{BUCKET}/{prefix}",
        "endpoint": store.endpoint,
        "access_key": ACCESS,
        "secret_key": SECRET,
        "region": "us-east-1",
    }


class LobsterTrap:
    """Our mover, as targets run it."""

    name = "lobstertrap"
    needs = ()
    restores = True

    def __init__(self, store: Store, work: Path) -> None:
        self._store = store
        self._environment = {"XDG_CACHE_HOME": str(work / "cache-lobstertrap")}
        with TemporaryDirectory() as empty:  # makes the repository, as `restic init`
            self._run("snapshot", Path(empty), agent="nobody")

    def snapshot(self, source: Path) -> Measured:
        """Take a snapshot."""
        return self._run("snapshot", source)

    def restore(self, into: Path) -> Measured:
        """Restore the latest one, remove what it does not have, and verify."""
        # As a migration restores: onto an older copy, in place.
        return self._run(
            "restore", into, snapshot="latest", delete_extra=True, in_place=True
        )

    def _run(self, command: str, path: Path, **more: Any) -> Measured:
        owner = [os.getuid(), os.getgid()]
        request = {
            "version": 1,
            "command": command,
            "agent": "bench",
            "consistency": "stopped",
            "volumes": {"data": str(path)},
            "local_owner": owner,
            "owner": owner,
            "store": our_store(self._store, "lobstertrap"),
            "key": KEY,
            "cache": True,
            **more,
        }
        mover: list[str | Path] = [sys.executable, "-m", "lobstertrap.mover"]
        return measure(mover, self._environment, json.dumps(request) + "\n")


class Restic:
    """The peer: encrypted, deduplicated, to S3."""

    name = "restic"
    needs = ("restic",)
    restores = True

    def __init__(self, store: Store, work: Path) -> None:
        place = str(store.directory / "restic")
        if store.endpoint:
            place = f"s3:{store.endpoint}/{BUCKET}/restic"
        self._environment = {
            "RESTIC_REPOSITORY": place,
            "RESTIC_PASSWORD": KEY,
            "RESTIC_CACHE_DIR": str(work / "cache-restic"),
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }
        measure(["restic", "init", "-q"], self._environment)

    def snapshot(self, source: Path) -> Measured:
        """Take a snapshot."""
        return measure(["restic", "backup", "-q", str(source)], self._environment)

    def restore(self, into: Path) -> Measured:
        """Restore the latest one."""
        command: list[str | Path] = ["restic", "restore", "-q", "latest"]
        return measure([*command, "--target", into], self._environment)


class Borg:
    """Encrypted and deduplicated, to a local directory: it speaks no S3."""

    name = "borg"
    needs = ("borg",)
    restores = True

    def __init__(self, store: Store, work: Path) -> None:
        self._count = 0
        self._environment = {
            "BORG_REPO": str(store.directory / "borg"),
            "BORG_PASSPHRASE": KEY,
            "BORG_BASE_DIR": str(work / "cache-borg"),
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        init: list[str | Path] = ["borg", "--error", "init", "-e", "repokey-blake2"]
        measure(init, self._environment)

    def snapshot(self, source: Path) -> Measured:
        """Take a snapshot."""
        self._count += 1
        command: list[str | Path] = ["borg", "create", "-C", f"zstd,{LEVEL}"]
        archive = [f"::s{self._count}", "."]
        return measure([*command, *archive], self._environment, cwd=source)

    def restore(self, into: Path) -> Measured:
        """Extract the latest one."""
        into.mkdir(exist_ok=True)
        command: list[str | Path] = ["borg", "extract", f"::s{self._count}"]
        return measure(command, self._environment, cwd=into)


class Tar:
    """`tar | zstd | upload`: what people do by hand; not encrypted."""

    name = "tar+zstd"
    needs = ("tar", "zstd", "bash")
    restores = True

    def __init__(self, store: Store, work: Path) -> None:
        del work
        self._count = 0
        self._file = store.directory / BUCKET
        self._rclone: list[str] = []
        self._environment: dict[str, str] = {}
        if store.endpoint:
            self._rclone = [find_rclone(), "-q", "--config", os.devnull]
            self._environment = {
                "RCLONE_CONFIG_BENCH_TYPE": "s3",
                "RCLONE_CONFIG_BENCH_PROVIDER": "Rclone",
                "RCLONE_CONFIG_BENCH_ENDPOINT": store.endpoint,
                "RCLONE_CONFIG_BENCH_ACCESS_KEY_ID": ACCESS,
                "RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY": SECRET,
            }

    def snapshot(self, source: Path) -> Measured:
        """Store everything as one new object."""
        self._count += 1
        tar = f"tar -C {shlex.quote(str(source))} -cf - . | zstd -{LEVEL} -T0 -q"
        return self._pipe(f"{tar} | {self._carry('rcat')}")

    def restore(self, into: Path) -> Measured:
        """Unpack the latest object."""
        into.mkdir(exist_ok=True)
        tar = f"zstd -d -q | tar -C {shlex.quote(str(into))} -xf -"
        return self._pipe(f"{self._carry('cat')} | {tar}")

    def _carry(self, verb: str) -> str:
        name = f"s{self._count}.tar.zst"
        if self._rclone:
            return shlex.join([*self._rclone, verb, f"bench:{BUCKET}/{name}"])
        file = shlex.quote(str(self._file / name))
        return f"cat > {file}" if verb == "rcat" else f"cat {file}"

    def _pipe(self, line: str) -> Measured:
        command: list[str | Path] = ["bash", "-o", "pipefail", "-c", line]
        return measure(command, self._environment)


class Limit:
    """Read, zstd and upload, and nothing else: what no engine gets below."""

    name = "limit"
    needs = ()
    restores = False

    def __init__(self, store: Store, work: Path) -> None:
        del work
        self._settings = our_store(store, "limit")

    def snapshot(self, source: Path) -> Measured:
        """Compress and store everything."""
        command = [sys.executable, "-m", "benchmarks.limit", source]
        return measure(command, {}, json.dumps(self._settings))

    def restore(self, into: Path) -> Measured:
        """Nothing can be restored."""
        raise NotImplementedError(into)


PROGRAMS: dict[str, type[Program]] = {
    program.name: program for program in (LobsterTrap, Restic, Borg, Tar, Limit)
}
_PACKAGES = {"borg": "borgbackup"}


def present(names: list[str]) -> list[type[Program]]:
    """Return those that can run here, and say how to get the others."""
    chosen = [PROGRAMS[name] for name in names]
    missing = {need for p in chosen for need in p.needs if not shutil.which(need)}
    if missing:
        packages = sorted(_PACKAGES.get(name, name) for name in missing)
        print(f"left out: apt-get install {' '.join(packages)}", file=sys.stderr)
    return [program for program in chosen if not missing & {*program.needs}]
