"""Starts and removes a cluster; the scripts `up` and `down` and the tests use it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.cluster import layout as node
from tests.cluster.binary import Binaries, built_binaries, require_parts
from tests.cluster.certificates import Authority, write_token_key
from tests.cluster.layout import Layout

_START_SECONDS = 180.0
_CHECKOUT = Path(__file__).parents[2]
_CGROUPS = Path("/sys/fs/cgroup")
# A child of a test run dies with it; one of `up` lives until `down`.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(); "
    "os.execvp(sys.argv[2], sys.argv[2:])"
)


class ClusterError(Exception):
    """The cluster does not come up; the message has the end of the logs."""


class Cluster:
    """One running cluster, found by its directory."""

    operator = "operator"
    """Who has our Role in the namespaces of tests, and nothing else."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    @classmethod
    def start(
        cls, directory: Path, *, stays: bool = False, build: bool = True
    ) -> Cluster:
        """Start a cluster in an empty directory; returns when its node is ready.

        `stays`: it goes on when this process ends. Raises `MissingPartError` where it
        cannot run, and `ClusterError` when it does not come up.
        """
        require_parts()
        binaries = built_binaries(build=build)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The agents' volumes are in it, so others may pass through.
        directory.chmod(0o711)
        layout = Layout.choose(directory.absolute(), binaries.kube)
        _write_files(layout)
        cluster = cls(layout)
        try:
            _make_network(layout)
            _make_cgroup(layout)
            cluster._spawn(stays=stays)
            cluster._await_ready(binaries)
        except BaseException:
            cluster.remove()
            raise
        return cluster

    @classmethod
    def of(cls, directory: Path) -> Cluster:
        """Return the cluster that was started in `directory`."""
        return cls(Layout.load(directory))

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.layout.path("admin.conf")

    @property
    def registry(self) -> str:
        """The image registry that the node pulls from: `127.0.0.1:5000`."""
        return self.layout.registry

    @property
    def gateway(self) -> str:
        """The address by which pods reach this machine."""
        return self.layout.gateway

    def kubectl(
        self, *arguments: str, stdin: object = None, kubeconfig: Path | None = None
    ) -> str:
        """Run kubectl and return what it printed; `stdin` is sent as JSON."""
        done = subprocess.run(
            [self.layout.kube, "kubectl", *arguments],
            env={**os.environ, "KUBECONFIG": str(kubeconfig or self.kubeconfig)},
            input=None if stdin is None else json.dumps(stdin),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """Return what `kubectl get` finds, as JSON."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def require_own(self) -> None:
        """Do nothing: this cluster is ours, and its node may be treated badly."""

    def pause(self, part: str) -> None:
        """Let a part (`kubelet`, `kube-apiserver`) answer nobody until `resume`."""
        os.kill(self._pid(part), signal.SIGSTOP)

    def resume(self, part: str) -> None:
        """Let a paused part go on."""
        os.kill(self._pid(part), signal.SIGCONT)

    def remove(self) -> None:
        """End everything and remove every trace."""
        self._end()
        subprocess.run(
            ["ip", "link", "delete", self.layout.name], check=False, capture_output=True
        )
        _remove_cgroup(self.layout)
        _remove_mounts(self.layout)
        shutil.rmtree(self.layout.directory, ignore_errors=True)

    def logs(self, lines: int = 15) -> str:
        """Return the end of every part's log."""
        shown = []
        for path in sorted(self.layout.path("log").glob("*.log")):
            last = path.read_text(errors="replace").splitlines()[-lines:]
            shown.append("\n".join([f"== {path.name}", *last]))
        return "\n".join(shown)

    def _spawn(self, *, stays: bool) -> None:
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        command += ["--mount-proc", sys.executable, "-m", "tests.cluster.node"]
        command += [self.layout.directory]
        if not stays:
            parent = str(os.getpid())
            command = [sys.executable, "-c", _DIE_WITH_PARENT, parent, *command]
        with self.layout.path("log", "node.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=_CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._process = process
        self.layout.path("pid").write_text(str(process.pid))

    def _end(self) -> None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid = int(self.layout.path("pid").read_text())
            if self.layout.directory in _command_line(pid):
                os.kill(pid, signal.SIGKILL)  # what it started is killed with it
        process = getattr(self, "_process", None)
        if process is not None:
            process.wait()
        deadline = time.monotonic() + 30
        while list(self._processes()) and time.monotonic() < deadline:
            time.sleep(0.05)

    def _processes(self) -> Iterator[int]:
        """Yield the processes that have the cluster's directory in their command."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                words = _command_line(int(entry.name))
                if f"{self.layout.directory}/" in words or words.endswith(
                    self.layout.directory
                ):
                    yield int(entry.name)

    def _pid(self, part: str) -> int:
        prefix = " ".join(node.commands(self.layout)[part][:3])
        for pid in self._processes():
            if _command_line(pid).startswith(prefix):
                return pid
        raise ClusterError(f"{part} does not run")

    def _await_ready(self, binaries: Binaries) -> None:
        deadline = time.monotonic() + _START_SECONDS
        self._until(deadline, lambda: self.kubectl("get", "--raw", "/readyz") == "ok")
        self._until(deadline, lambda: self._import_pause(binaries.pause))
        self.kubectl("apply", "-f", "-", stdin=_STORAGE_CLASS)
        hosting = _registry_hosting(self.registry)
        self._until(
            deadline, lambda: self.kubectl("apply", "-f", "-", stdin=hosting) != ""
        )
        self._until(deadline, self._is_node_ready)

    def _until(self, deadline: float, check: Any) -> None:
        while True:
            why = ""
            try:
                if check():
                    return
            except (ClusterError, subprocess.CalledProcessError) as error:
                why = str(error)
            if time.monotonic() > deadline:
                raise ClusterError(f"the cluster is not ready: {why}\n{self.logs()}")
            time.sleep(0.2)

    def _is_node_ready(self) -> bool:
        found = self.get("node", node.NODE)
        ready = {c["type"]: c["status"] for c in found["status"]["conditions"]}
        return ready.get("Ready") == "True"

    def _import_pause(self, binary: Path) -> bool:
        archive = self.layout.path("tmp", "pause.tar")
        archive.write_bytes(_pause_archive(binary.read_bytes()))
        socket = str(self.layout.path("containerd.sock"))
        subprocess.run(
            [
                *("ctr", "--address", socket, "--namespace", "k8s.io"),
                *("images", "import", str(archive)),
            ],
            check=True,
            capture_output=True,
        )
        return True


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b" ".join(words).decode(errors="replace").strip()
    return ""


def _write_files(layout: Layout) -> None:
    for name in ("pki", "log", "tmp", "home", "cni", "volumes", "addresses"):
        layout.path(name).mkdir()
    layout.path("volumes").chmod(0o755)
    authority = Authority(layout.path("pki"))
    authority.sign("admin", "admin", "system:masters")
    authority.sign("operator", "operator")
    authority.sign("stranger", "stranger")
    authority.sign("server", "server", addresses=("127.0.0.1", layout.gateway))
    write_token_key(layout.path("pki", "tokens.key"))
    files: Mapping[str, object] = {
        **{
            f"{user}.conf": node.kubeconfig(layout, user)
            for user in ("admin", "operator", "stranger")
        },
        "kubelet.json": node.kubelet_config(layout),
        "cni/network.conflist": node.cni_config(layout),
        "registry.json": node.registry_config(layout),
    }
    for name, content in files.items():
        layout.path(name).write_text(json.dumps(content, indent=1))
    layout.path("containerd.toml").write_text(node.containerd_config(layout))
    layout.save()


def _make_network(layout: Layout) -> None:
    for words in (
        ["link", "add", layout.name, "type", "bridge"],
        ["address", "add", f"{layout.gateway}/24", "dev", layout.name],
        ["link", "set", layout.name, "up"],
    ):
        subprocess.run(["ip", *words], check=True)


def _cgroups(layout: Layout) -> list[Path]:
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS / layout.name]
    mounted = [p for p in _CGROUPS.iterdir() if p.is_dir() and not p.is_symlink()]
    return [p / layout.name for p in mounted]


def _make_cgroup(layout: Layout) -> None:
    for path in _cgroups(layout):
        path.mkdir()


def _remove_cgroup(layout: Layout) -> None:
    deadline = time.monotonic() + 10
    for top in _cgroups(layout):
        for below, _, _ in os.walk(top, topdown=False):
            while Path(below).exists():
                try:
                    Path(below).rmdir()
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)


def _remove_mounts(layout: Layout) -> None:
    """Remove what a mount that got out of the node's own namespace has left."""
    for mount in Path("/proc/self/mountinfo").read_text().splitlines():
        place = mount.split()[4]
        if place.startswith(f"{layout.directory}/"):
            subprocess.run(["umount", "--lazy", place], check=False)


def _pause_archive(binary: bytes) -> bytes:
    """Return a docker archive of one static binary."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        _add(tar, "pause", binary, mode=0o755)
    config = {
        "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
        "os": "linux",
        "config": {"Entrypoint": ["/pause"]},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"],
        },
    }
    manifest = [
        {
            "Config": "config.json",
            "RepoTags": [node.PAUSE_IMAGE],
            "Layers": ["layer.tar"],
        }
    ]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        _add(tar, "layer.tar", layer.getvalue())
        _add(tar, "config.json", json.dumps(config).encode())
        _add(tar, "manifest.json", json.dumps(manifest).encode())
    return archive.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    tar.addfile(info, io.BytesIO(content))


def _registry_hosting(registry: str) -> dict[str, Any]:
    """Return how a cluster says which registry it pulls from (KEP-1755)."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "local-registry-hosting", "namespace": "kube-public"},
        "data": {"localRegistryHosting.v1": f'host: "{registry}"\n'},
    }


_STORAGE_CLASS = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {
        "name": "standard",
        "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
    },
    "provisioner": "lobstertrap/directories",
    "reclaimPolicy": "Delete",
    "volumeBindingMode": "WaitForFirstConsumer",
}
