"""Inference providers: what a spec says of them, and trying a key when asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError

from lobstertrap.agent import AgentSpec
from lobstertrap.cli.app import run
from lobstertrap.inference import PRESETS, Preset
from lobstertrap.redaction import SecretValue
from lobstertrap.secrets.key_trial import try_key

KEY = "a-key-that-is-good"


class _Provider(BaseHTTPRequestHandler):
    """A stand-in for an inference provider: knows one key, and remembers requests."""

    def do_GET(self) -> None:
        """Answer as a provider does."""
        seen = dict(self.headers.items())
        self.server.seen.append((self.path, seen))  # type: ignore[attr-defined]
        bearer = self.headers.get("Authorization", "")
        own = self.headers.get("x-api-key") or self.headers.get("x-goog-api-key")
        given = own or bearer.removeprefix("Bearer ")
        if self.path.startswith("/elsewhere"):
            self.send_response(302)
            self.send_header("Location", "/v1/models")
        else:
            codes = {KEY: 200, "broken": 500, "forbidden": 403}
            self.send_response(codes.get(given, 401))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def provider() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Provider) as server:
        server.seen = []  # type: ignore[attr-defined]
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield server
        finally:
            server.shutdown()
            serving.join()


def spec(**fields: object) -> AgentSpec:
    return AgentSpec.model_validate(
        {
            "name": "ada",
            "image": "x",
            "volumes": [{"name": "state", "path": "/state"}],
            **fields,
        }
    )


def preset(server: ThreadingHTTPServer, **fields: object) -> Preset:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return Preset(**{"name": "local", "env": "LOCAL_KEY", "url": url, **fields})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_adds_the_secret_that_the_agent_reads(name: str) -> None:
    env = PRESETS[name].env

    agent = spec(inference=[name])

    assert str(agent.secrets[env]) == f"env:default:{env}"
    assert agent.env == {}
    assert agent.inference[0].preset == PRESETS[name]
    assert PRESETS[name].hosts[0].endswith(":443")


def test_a_secret_that_the_spec_has_is_not_replaced() -> None:
    own = {"source": "exec", "provider": "vault", "id": "openai"}

    agent = spec(inference=["openai"], secrets={"OPENAI_API_KEY": own})
    other = spec(inference=[{"name": "openai", "key": own}])

    assert str(agent.secrets["OPENAI_API_KEY"]) == "exec:vault:openai"
    assert agent.secrets == other.secrets


def test_a_compatible_endpoint_is_named_with_its_url() -> None:
    agent = spec(
        inference=[
            {"name": "ours", "url": "http://10.0.0.5:8000/v1/", "env": "OUR_KEY"}
        ]
    )

    assert [*agent.secrets] == ["OUR_KEY"]
    assert agent.env == {"OUR_BASE_URL": "http://10.0.0.5:8000/v1"}
    assert agent.inference[0].preset.hosts == ("10.0.0.5:8000",)


@pytest.mark.parametrize(
    "wrong",
    [
        "nobody-knows-it",
        {"name": "ours", "url": "http://x"},
        {"name": "ours", "url": "ftp://x", "env": "OUR_KEY"},
        {"name": "ours", "url": "http://user:pass@x", "env": "OUR_KEY"},
        {"name": "openai", "key": "sk-hunter2"},
    ],
)
def test_a_provider_that_cannot_be_is_refused(wrong: object) -> None:
    with pytest.raises(ValidationError):
        spec(inference=[wrong])


def test_files_of_secrets_have_directories_of_their_own() -> None:
    def mistakes(**files: str) -> str:
        with pytest.raises(ValidationError) as caught:
            spec(secrets={"KEY": "${KEY}", "TWO": "${TWO}"}, secret_files=files)
        return str(caught.value)

    assert "there is no secret 'OTHER'" in mistakes(OTHER="/run/secrets/x")
    assert "needs a directory of its own" in mistakes(KEY="/etc/key")
    assert "and volume 'state' overlap" in mistakes(KEY="/state/secrets/key")
    assert "two files have one path" in mistakes(KEY="/run/s/x", TWO="/run/s/x")


def test_a_key_is_tried_with_one_request() -> None:
    with provider() as server:
        trial = try_key(preset(server), SecretValue(KEY))

        assert trial.accepted
        assert [path for path, _ in server.seen] == ["/v1/models"]
        assert server.seen[0][1]["Authorization"] == f"Bearer {KEY}"


def test_a_key_goes_where_the_provider_wants_it() -> None:
    headers = {"anthropic-version": "2023-06-01"}
    with provider() as server:
        asked = preset(server, header="x-api-key", scheme="", headers=headers)

        assert try_key(asked, SecretValue(KEY)).accepted

        seen = {name.lower(): value for name, value in server.seen[0][1].items()}
        assert seen["x-api-key"] == KEY
        assert seen["anthropic-version"] == "2023-06-01"
        assert "authorization" not in seen


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("wrong", "refuses it"),
        ("forbidden", "refuses it"),
        ("broken", "answers 500"),
        ("two\nlines", "cannot stand in an HTTP header"),
        ("\u4e16", "cannot stand in an HTTP header"),
    ],
)
def test_a_key_that_is_not_accepted_is_told_without_it(key: str, said: str) -> None:
    with provider() as server:
        trial = try_key(preset(server), SecretValue(key))

    assert not trial.accepted
    assert trial.said.endswith(said)
    assert key not in trial.said.removesuffix(said)


def test_a_key_follows_no_redirect() -> None:
    with provider() as server:
        trial = try_key(preset(server, trial="/../elsewhere"), SecretValue(KEY))
        trial = try_key(
            preset(server, url=f"http://127.0.0.1:{server.server_port}/elsewhere"),
            SecretValue(KEY),
        )

        assert not trial.accepted
        assert trial.said.endswith("answers 302")
        assert "/v1/models" not in [path for path, _ in server.seen]


def test_a_provider_that_is_not_there_is_told() -> None:
    with provider() as server:
        gone = preset(server)

    trial = try_key(gone, SecretValue(KEY), seconds=5)

    assert trial.said.endswith("does not answer: ConnectionRefusedError")


def test_preflight_asks_a_provider_only_when_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with provider() as server:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        _project(tmp_path, {"name": "local", "url": url, "env": "LOCAL_KEY"})
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("LOCAL_KEY", KEY)

        quiet = run(["preflight", "ada", "--on", "desk", "--json"])
        told = json.loads(capsys.readouterr().out)
        asked_before = len(server.seen)
        tested = run(["preflight", "ada", "--on", "desk", "--test-keys"])
        table = capsys.readouterr().out
        monkeypatch.setenv("LOCAL_KEY", "wrong-one")
        refused = run(["preflight", "ada", "--on", "desk", "--test-keys"])
        end = capsys.readouterr()

    assert (quiet, tested, refused) == (0, 0, 3)
    assert told["ok"]
    assert [c["check"] for c in told["checks"]] == ["target desk", "secret LOCAL_KEY"]
    assert asked_before == 0
    assert "accepts it" in table
    assert "refuses it" in end.out
    assert "'ada' is not ready for 'desk': key of local" in end.err
    assert "wrong-one" not in end.out + end.err


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("key", [KEY, "wrong-one"])
def test_every_presets_key_can_be_tried(
    name: str,
    key: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = PRESETS[name]
    path = urlsplit(known.url).path
    with provider() as server:
        used = {"name": name, "url": f"http://127.0.0.1:{server.server_port}{path}"}
        _project(tmp_path, used)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv(known.env, key)

        ended = run(["preflight", "ada", "--on", "desk", "--test-keys", "--json"])

    told = json.loads(capsys.readouterr().out)["checks"][-1]
    (asked, headers), *more = server.seen  # type: ignore[attr-defined]
    sent = {header.lower(): value for header, value in headers.items()}
    assert told["check"] == f"key of {name}"
    assert told["ok"] is (key == KEY)
    assert ended == (0 if key == KEY else 3)
    assert asked == f"{path}{known.trial}"
    assert sent[known.header.lower()] == f"{known.scheme}{key}"
    assert {h.lower(): v for h, v in known.headers.items()}.items() <= sent.items()
    assert more == []


@pytest.mark.parametrize(
    ("egress", "ways"),
    [
        ([], [False, True]),
        (["10.0.0.0/8:8443"], [False, True]),
        (["0.0.0.0/0:443"], [True, True]),
        (["0.0.0.0/0"], [True, True]),
    ],
)
def test_preflight_says_where_no_rule_lets_an_agent_reach_its_provider(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    egress: list[str],
    ways: list[bool],
) -> None:
    ours = {"name": "ours", "url": "http://10.0.0.5:8000/v1", "env": "LOCAL_KEY"}
    _project(tmp_path, "anthropic", ours)
    with (tmp_path / "lobstertrap.toml").open("a") as file:
        file.write(
            '[targets.cluster]\nkind = "kubernetes"\nkubeconfig = "nowhere"\n'
            f"egress = {json.dumps(egress)}\n"
        )
    monkeypatch.chdir(tmp_path)

    run(["preflight", "ada", "--on", "cluster", "--json"])

    checks = json.loads(capsys.readouterr().out)["checks"]
    found = {c["check"]: c["ok"] for c in checks if c["check"].startswith("way to ")}
    assert found == {"way to anthropic": ways[0], "way to ours": ways[1]}


def test_secrets_are_shown_without_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    local = {"name": "local", "url": "http://127.0.0.1:1/v1", "env": "LOCAL_KEY"}
    _project(tmp_path, local)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_KEY", KEY)

    resolved = run(["secrets", "ada"])
    table = capsys.readouterr().out
    monkeypatch.delenv("LOCAL_KEY")
    missing = run(["secrets", "ada", "--json"])
    told = json.loads(capsys.readouterr().out)

    assert (resolved, missing) == (0, 0)
    assert [line.split() for line in table.splitlines()][1] == [
        *("LOCAL_KEY", "env:default:LOCAL_KEY", "resolves", "not", "bound")
    ]
    row = told["secrets"][0]
    assert row["problem"] == "the variable LOCAL_KEY is not set"
    assert row["on"] == {"desk": "not bound"}
    assert KEY not in table + json.dumps(told)


def _project(directory: Path, *providers: object) -> None:
    agent = directory / "agents" / "ada"
    agent.mkdir(parents=True)
    inference = json.dumps(providers)
    (agent / "agent.yaml").write_text(
        "name: ada\nimage: x\nhost: {command: ['true']}\n"
        "volumes: [{name: state, path: /state}]\n"
        f"inference: {inference}\n"
    )
    (directory / "lobstertrap.toml").write_text(
        f'[store]\nurl = "file://{directory}/store"\n'
        '[repository]\nkey = "${REPOSITORY_KEY}"\n'
        '[targets.desk]\nkind = "host"\nroot = "desk"\n'
    )
