"""What one cluster is made of: its directory, ports, addresses, and every command."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.cluster.binary import CNI_PLUGINS

CONTEXT = "lobstertrap"
NODE = "node"
PAUSE_IMAGE = "localhost/pause:1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Names and numbers of one cluster; nothing here collides with another one's."""

    directory: str
    kube: str
    """The binary that is every part of Kubernetes."""
    name: str
    """Of its bridge and of its cgroup."""
    network: str
    """The first three numbers of the pods' addresses: `10.201.7`."""
    etcd_port: int
    etcd_peer_port: int
    api_port: int
    kubelet_port: int
    registry_port: int

    @property
    def gateway(self) -> str:
        """The node's address, which pods reach: the bridge has it."""
        return f"{self.network}.1"

    @property
    def server(self) -> str:
        """The API server's address."""
        return f"https://127.0.0.1:{self.api_port}"

    @property
    def registry(self) -> str:
        """The registry's address, for this machine and for the node alike."""
        return f"127.0.0.1:{self.registry_port}"

    def path(self, *parts: str) -> Path:
        """Return a path in the cluster's directory."""
        return Path(self.directory, *parts)

    def save(self) -> None:
        """Write it to the directory, for `down` and for the node itself."""
        self.path("layout.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, directory: Path) -> Layout:
        """Read what `save` wrote."""
        return cls(**json.loads((directory / "layout.json").read_text()))

    @classmethod
    def choose(cls, directory: Path, kube: Path) -> Layout:
        """Choose what is free on this machine now."""
        etcd, peer, api, kubelet, registry = _free_ports(5)
        return cls(
            directory=str(directory),
            kube=str(kube),
            name=f"ltk{secrets.token_hex(4)}",
            network=_free_network(),
            etcd_port=etcd,
            etcd_peer_port=peer,
            api_port=api,
            kubelet_port=kubelet,
            registry_port=registry,
        )


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _free_network() -> str:
    routes = subprocess.run(
        ["ip", "-4", "route", "show"], capture_output=True, text=True, check=True
    ).stdout
    while True:
        network = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
        if f"{network}." not in routes:
            return network


def commands(layout: Layout) -> dict[str, list[str]]:
    """Return every program of the node by its name, in the order of their start."""
    path, kube = layout.path, layout.kube
    pki = path("pki")
    etcd = f"http://127.0.0.1:{layout.etcd_port}"
    peer = f"http://127.0.0.1:{layout.etcd_peer_port}"
    admin = f"--kubeconfig={path('admin.conf')}"
    return {
        "etcd": [
            "etcd",
            f"--data-dir={path('etcd')}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        ],
        "kube-apiserver": [
            *(kube, "kube-apiserver"),
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            f"--advertise-address={layout.gateway}",
            f"--secure-port={layout.api_port}",
            f"--tls-cert-file={pki}/server.crt",
            f"--tls-private-key-file={pki}/server.key",
            f"--client-ca-file={pki}/ca.crt",
            f"--kubelet-client-certificate={pki}/admin.crt",
            f"--kubelet-client-key={pki}/admin.key",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-key-file={pki}/tokens.key",
            f"--service-account-signing-key-file={pki}/tokens.key",
            f"--service-account-issuer={layout.server}",
            "--service-cluster-ip-range=10.199.0.0/24",
            "--authorization-mode=Node,RBAC",
            "--feature-gates=HostnameOverride=true",
            "--endpoint-reconciler-type=none",
        ],
        "kube-controller-manager": [
            *(kube, "kube-controller-manager", admin),
            "--secure-port=0",
            "--leader-elect=false",
            "--use-service-account-credentials=false",
            f"--service-account-private-key-file={pki}/tokens.key",
            f"--root-ca-file={pki}/ca.crt",
            "--node-monitor-period=2s",
            "--node-monitor-grace-period=15s",
        ],
        "kube-scheduler": [
            *(kube, "kube-scheduler", admin, "--secure-port=0", "--leader-elect=false")
        ],
        "provisioner": [
            *(kube, "provisioner", admin, f"--root={path('volumes')}"),
            f"--node={NODE}",
        ],
        "containerd": ["containerd", "--config", str(path("containerd.toml"))],
        "kubelet": [
            *(kube, "kubelet", admin, f"--config={path('kubelet.json')}"),
            f"--root-dir={path('kubelet')}",
            f"--hostname-override={NODE}",
            f"--node-ip={layout.gateway}",
        ],
        "registry": ["docker-registry", "serve", str(path("registry.json"))],
    }


def containerd_config(layout: Layout) -> str:
    """Return containerd.toml."""
    path = layout.path
    cri = '[plugins."io.containerd.grpc.v1.cri"'
    return f"""\
version = 2
root = "{path("containerd")}"
state = "{path("run")}"
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "{path("containerd.sock")}"
{cri}]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_tcp_service = true
  netns_mounts_under_state_dir = true
{cri}.containerd]
  default_runtime_name = "runc"
{cri}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
{cri}.cni]
  bin_dir = "{CNI_PLUGINS}"
  conf_dir = "{path("cni")}"
{cri}.registry.mirrors."{layout.registry}"]
  endpoint = ["http://{layout.registry}"]
"""


def kubelet_config(layout: Layout) -> dict[str, Any]:
    """Return the KubeletConfiguration; each odd field is what this machine needs."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": layout.gateway,
        "port": layout.kubelet_port,
        "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(layout.path("pki", "ca.crt"))},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": f"unix://{layout.path('containerd.sock')}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.name}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "makeIPTablesUtilChains": False,
        "podLogsDir": str(layout.path("log", "pods")),
        "resolvConf": "",
        # Nobody else's disk or memory may evict the tests' pods.
        "evictionHard": {"memory.available": "64Mi", "nodefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "nodeStatusUpdateFrequency": "4s",
        "syncFrequency": "2s",
        "featureGates": {"KubeletInUserNamespace": True, "HostnameOverride": True},
    }


def cni_config(layout: Layout) -> dict[str, Any]:
    """Return the network of the pods: a bridge of its own, no rules in any firewall."""
    return {
        "cniVersion": "0.4.0",
        "name": layout.name,
        "plugins": [
            {
                "type": "bridge",
                "bridge": layout.name,
                "isGateway": False,
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(layout.path("addresses")),
                    "ranges": [
                        [
                            {
                                "subnet": f"{layout.network}.0/24",
                                "rangeStart": f"{layout.network}.2",
                                "gateway": layout.gateway,
                            }
                        ]
                    ],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }


def registry_config(layout: Layout) -> dict[str, Any]:
    """Return the configuration of the image registry (YAML, so JSON too)."""
    return {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(layout.path("registry"))},
            "delete": {"enabled": True},
        },
        "http": {"addr": layout.registry},
    }


def kubeconfig(layout: Layout, user: str) -> dict[str, Any]:
    """Return a kubeconfig for whoever has the certificate `user` in pki/."""
    pki = layout.path("pki")
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": CONTEXT,
        "clusters": [
            {
                "name": layout.name,
                "cluster": {
                    "server": layout.server,
                    "certificate-authority": f"{pki}/ca.crt",
                },
            }
        ],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate": f"{pki}/{user}.crt",
                    "client-key": f"{pki}/{user}.key",
                },
            }
        ],
        "contexts": [
            {"name": CONTEXT, "context": {"cluster": layout.name, "user": user}}
        ],
    }


def environment(layout: Layout) -> dict[str, str]:
    """Return what the node's programs see: nothing of a person's settings."""
    return {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "HOME": str(layout.path("home")),
        "TMPDIR": str(layout.path("tmp")),
    }
