"""The manifests and the words of the Kubernetes target, without a cluster."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from lobstertrap.agent import AgentSpec, Security, load_agent
from lobstertrap.errors import (
    AccessDenied,
    Conflict,
    InvalidInput,
    NoSpace,
    NotFound,
    Refused,
    Unavailable,
)
from lobstertrap.secret_ref import SecretRef
from lobstertrap.targets import kubernetes_api, kubernetes_pods, kubernetes_status
from lobstertrap.targets import kubernetes_spec as spec
from lobstertrap.targets.kubernetes_registry import Registry
from lobstertrap.targets.kubernetes_rights import RIGHTS
from tests.fixtures.tally import AGENT

ROOT = Path(__file__).parents[2]
SETTINGS = spec.Settings(target="cluster", keeps_hostname=True)


@pytest.fixture
def agent() -> AgentSpec:
    return load_agent(AGENT / "agent.yaml")


def manifest(agent: AgentSpec, settings: spec.Settings = SETTINGS):
    return spec.stateful_set(
        agent,
        settings,
        epoch=7,
        image="registry/tally@sha256:1",
        replicas=1,
        prepare_image=None,
    )


def pod_of(agent: AgentSpec, settings: spec.Settings = SETTINGS):
    return manifest(agent, settings)["spec"]["template"]["spec"]


def test_the_role_grants_exactly_what_is_asked_for():
    documents = yaml.safe_load_all(
        (ROOT / "deployments" / "kubernetes" / "role.yaml").read_text()
    )
    role = next(d for d in documents if d["kind"] == "Role")
    granted = {
        (group, resource): tuple(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }

    assert granted.pop(("", "namespaces")) == ("get",)
    assert granted == {
        (kubernetes_api.GROUPS[resource.partition("/")[0]], resource): verbs
        for resource, verbs in RIGHTS.items()
    }


def test_an_agent_is_hardened_and_keeps_its_host_name(agent):
    pod = pod_of(agent)
    container = pod["containers"][0]

    assert pod["hostnameOverride"] == "tally"
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"] == str(256 * 2**20)


def test_a_secret_is_referred_to_and_its_value_is_nowhere(agent):
    elsewhere = SecretRef(source="target", id="models/openai")
    agent = agent.model_copy(
        update={"secrets": {**agent.secrets, "KEY": elsewhere, "OTHER": elsewhere}}
    )
    env = {e["name"]: e.get("valueFrom") for e in pod_of(agent)["containers"][0]["env"]}

    assert env["TALLY_TOKEN"] == {
        "secretKeyRef": {"name": "lobstertrap-tally.secrets", "key": "TALLY_TOKEN"}
    }
    assert env["KEY"] == {"secretKeyRef": {"name": "models", "key": "openai"}}
    assert spec.secret_key("KEY", "models") == ("models", "KEY")


def test_a_secret_that_is_a_file_is_mounted_and_not_in_the_environment(agent):
    agent = agent.model_copy(
        update={"secret_files": {"TALLY_TOKEN": "/run/secrets/tally/token"}}
    )
    pod = pod_of(agent)
    container = pod["containers"][0]
    env = {entry["name"]: entry for entry in container["env"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}

    mount = mounts["/run/secrets/tally/token"]
    secret = volumes[mount["name"]]["secret"]
    assert "TALLY_TOKEN" not in env
    assert env["TALLY_TOKEN_FILE"]["value"] == "/run/secrets/tally/token"
    assert (mount["readOnly"], mount["subPath"]) == (True, "value")
    assert secret["secretName"] == "lobstertrap-tally.secrets"
    assert secret["items"] == [{"key": "TALLY_TOKEN", "path": "value"}]


def test_the_marks_of_secrets_are_found_again(agent):
    marks = {"TALLY_TOKEN": "0f0f"}
    found = spec.stateful_set(
        agent,
        SETTINGS,
        epoch=1,
        image="x",
        replicas=1,
        prepare_image=None,
        secrets=marks,
    )

    assert kubernetes_status.marks_of(found) == marks
    assert kubernetes_status.marks_of(None) == {}


def test_an_agent_that_runs_as_root_is_refused_unless_the_target_names_a_user(agent):
    root = agent.model_copy(update={"security": Security(user=0, group=0)})

    with pytest.raises(Refused, match="runs as root"):
        pod_of(root)

    there = spec.Settings(target="cluster", user=10_100)
    assert pod_of(root, there)["securityContext"]["runAsUser"] == 10_100
    assert there.owner(root) == (10_100, 10_100)


def test_a_variable_that_the_target_sets_is_not_overridden(agent):
    agent = agent.model_copy(update={"env": {"LOBSTERTRAP_EPOCH": "1"}})

    with pytest.raises(InvalidInput, match="LOBSTERTRAP_EPOCH"):
        pod_of(agent)


def test_an_older_cluster_is_not_asked_for_a_host_name(agent):
    assert "hostnameOverride" not in pod_of(agent, spec.Settings(target="old"))


def test_nothing_leaves_but_dns_and_what_is_allowed(agent):
    settings = spec.Settings(target="x", egress=["0.0.0.0/0:443"])
    agent = agent.model_copy(update={"egress": ["0.0.0.0/0:443", "10.0.0.0/8"]})
    policy = spec.surroundings(agent, settings)["networkpolicies"]["spec"]

    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [
        {
            "from": [{"podSelector": {}}],
            "ports": [{"protocol": "TCP", "port": 8080}],
        }
    ]
    assert policy["egress"] == [
        {
            "ports": [
                {"protocol": "UDP", "port": 53},
                {"protocol": "TCP", "port": 53},
            ]
        },
        {
            "to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}],
            "ports": [{"protocol": "TCP", "port": 443}],
        },
        {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
    ]


def test_an_inference_endpoint_that_is_an_address_can_be_reached(agent):
    ours = {"name": "ours", "url": "http://10.0.0.5:8000/v1", "env": "OURS_KEY"}
    other = {"name": "other", "url": "https://[fd00::5]/v1", "env": "OTHER_KEY"}
    named = AgentSpec.model_validate(
        agent.model_dump(exclude={"inference"})
        | {"inference": [ours, other, "anthropic"]}
    )

    policy = spec.surroundings(named, spec.Settings(target="x"))["networkpolicies"]

    assert policy["spec"]["egress"][1:] == [
        {
            "to": [{"ipBlock": {"cidr": cidr}}],
            "ports": [{"protocol": "TCP", "port": port}],
        }
        for cidr, port in (("10.0.0.5/32", 8000), ("fd00::5/128", 443))
    ]


def test_an_ipv6_block_with_a_port_is_read_right():
    assert spec._egress("fd00::/8:53")["to"] == [{"ipBlock": {"cidr": "fd00::/8"}}]
    assert "ports" not in spec._egress("fd00::/8")


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (401, "Unauthorized", AccessDenied),
        (403, "pods is forbidden: User cannot list", AccessDenied),
        (403, 'pods "x" is forbidden: exceeded quota: small', NoSpace),
        (403, 'violates PodSecurity "restricted:latest"', Refused),
        (404, 'pods "x" not found', NotFound),
        (404, 'namespaces "gone" not found', NotFound),
        (409, "the object has been modified", Conflict),
        (422, "is invalid", InvalidInput),
        (429, "too many requests", Unavailable),
        (503, "etcd is away", Unavailable),
    ],
)
def test_an_answer_of_the_api_server_is_an_error_of_ours(status, said, kind):
    error = kubernetes_api._error_of(status, said, f"target 'c': {said}", "agents")

    assert type(error) is kind
    assert said in error.message


def pod_with(**status: object) -> dict[str, object]:
    return {"metadata": {}, "spec": {"nodeName": "n"}, "status": status}


def waiting(reason: str, message: str = "") -> dict[str, object]:
    state = {"waiting": {"reason": reason, "message": message}}
    return pod_with(containerStatuses=[{"state": state}])


def test_what_keeps_a_pod_from_starting_is_said_and_named():
    unschedulable = pod_with(
        conditions=[
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/1 nodes are available: 1 Insufficient memory.",
            }
        ]
    )
    evicted = pod_with(reason="Evicted", message="The node was low on memory")

    found = kubernetes_pods.trouble(waiting("ImagePullBackOff", "not found"), "x:")
    assert isinstance(found.error, NotFound)
    assert "not found" in found.text
    found = kubernetes_pods.trouble(unschedulable, "x:")
    assert found.error is None
    assert "Insufficient memory" in found.text
    found = kubernetes_pods.trouble(evicted, "x:")
    assert isinstance(found.error, Unavailable)
    assert "low on memory" in found.text
    assert kubernetes_pods.trouble(waiting("ContainerCreating"), "x:") is None


def test_a_pod_that_was_killed_for_its_memory_says_so():
    ended = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}

    killed = pod_with(containerStatuses=[{"state": ended}])
    assert kubernetes_pods.last_end(killed) == "killed: out of memory"


def test_fields_that_others_have_set_are_named_and_ours_are_not():
    container = {'k:{"name":"agent"}': {".": {}, "f:image": {}}}
    fields = {"f:template": {"f:spec": {"f:containers": container}}, "f:replicas": {}}
    entries = [
        {"manager": "lobstertrap", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
        {"manager": "kcm", "subresource": "status", "fieldsV1": {"f:spec": fields}},
        {"manager": "note", "fieldsV1": {"f:metadata": {"f:labels": {}}}},
        {"manager": "kubectl-edit", "fieldsV1": {"f:spec": fields}},
    ]

    assert kubernetes_status.drift_of({"metadata": {"managedFields": entries}}) == (
        "kubectl-edit has changed spec.replicas, "
        "spec.template.spec.containers.agent.image"
    )
    assert kubernetes_status.drift_of({"metadata": {}}) == ""
    assert kubernetes_status.drift_of(None) == ""


class _PrivateRegistry(BaseHTTPRequestHandler):
    """Wants a token for the manifest, and a password for the token."""

    def do_HEAD(self):
        if self.headers.get("Authorization") == "Bearer t0ken":
            self.send_response(200 if self.path.endswith("/here") else 404)
            self.send_header("Docker-Content-Digest", "sha256:abc")
        else:
            self.send_response(401)
            realm = f"http://{self.headers['Host']}/token"
            self.send_header(
                "WWW-Authenticate", f'Bearer realm="{realm}",service="s",scope="p"'
            )
        self.end_headers()

    def do_GET(self):
        known = self.headers.get("Authorization") == "Basic YWRhOnB3"
        self.send_response(200 if known else 401)
        self.end_headers()
        if known and self.path == "/token?service=s&scope=p":
            self.wfile.write(json.dumps({"token": "t0ken"}).encode())

    def log_message(self, *_: object) -> None:
        pass


def test_a_private_registry_is_asked_with_the_credentials_of_podman_login(tmp_path):
    auth = tmp_path / "auth.json"
    with ThreadingHTTPServer(("127.0.0.1", 0), _PrivateRegistry) as server:
        threading.Thread(target=server.serve_forever).start()
        host = f"127.0.0.1:{server.server_port}"
        auth.write_text(json.dumps({"auths": {host: {"auth": "YWRhOnB3"}}}))
        registry = Registry(
            place=f"{host}/team",
            insecure=True,
            auth_files=[tmp_path / "none.json", auth],
        )
        stranger = Registry(place=f"{host}/team", insecure=True)

        here, gone = registry.digest("tally", "here"), registry.digest("tally", "gone")
        with pytest.raises(AccessDenied, match="refuses the credentials"):
            stranger.digest("tally", "here")
        server.shutdown()

    assert (here, gone) == ("sha256:abc", None)


def test_a_registry_that_does_not_answer_is_unavailable():
    with pytest.raises(Unavailable, match="does not answer"):
        Registry(place="127.0.0.1:1/x", insecure=True).digest("a", "b")


def test_a_context_that_is_not_there_is_named(tmp_path):
    pytest.importorskip("kubernetes")
    config = tmp_path / "config"
    config.write_text('{"apiVersion": "v1", "kind": "Config", "contexts": []}')
    access = kubernetes_api.Access(kubeconfig=config, context="moon")
    api = kubernetes_api.KubernetesApi("there", access, "x")

    with pytest.raises(InvalidInput, match="moon"):
        api.get("pods")
