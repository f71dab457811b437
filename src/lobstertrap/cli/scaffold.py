"""What `init` writes: a configuration, a key, an example agent, and the repository."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
from pathlib import Path
from shutil import which
from typing import Any

from lobstertrap.config import FILE_NAME, load
from lobstertrap.errors import AccessDenied, Conflict

DEFAULT_STORE = "file://~/.local/share/lobstertrap/store"
KEY_FILE = "~/.config/lobstertrap/repository.key"
EXAMPLE = "hello"

_CONFIG = """\
# Every field: docs/configuration.md, or `lobstertrap schema config`.

agents = "agents"                   # the directory of agents, relative to this file

[store]                             # where snapshots and agent records are kept
url = {store}
{endpoint}# Credentials are those that boto3 finds (environment, profile, role), or:
# access_key = {{ source = "env", provider = "default", id = "AWS_ACCESS_KEY_ID" }}
# secret_key = {{ source = "env", provider = "default", id = "AWS_SECRET_ACCESS_KEY" }}

[repository]                        # the key that encrypts every snapshot: keep a copy
key = {{ source = "file", provider = "repository-key", id = "value" }}

[secrets.providers.repository-key]
source = "file"
path = "{key}"
mode = "singleValue"

[targets.desk]                      # agents as plain processes of this machine
kind = "host"
root = "~/.local/share/lobstertrap/desk"
"""
_PODMAN = """
[targets.laptop]                    # agents as containers of your own Podman
kind = "podman"
"""
_CLUSTER = """
# [targets.cluster]                 # agents as pods of a namespace
# kind = "kubernetes"
# context = "my-context"
# registry = "registry.example.com/agents"
"""
_SPEC = """\
# An example: it counts its own starts. Every field: `lobstertrap schema`.
name: hello
build:
  context: .
  containerfile: Containerfile
host:
  command: ["python3", "{agent}/hello.py"]
volumes:
  - name: state
    path: /home/hello/state
    size: 100Mi
env:
  HELLO_STATE: "{volumes.state}"
  HELLO_PORT: "{ports.http}"
ports:
  - name: http
    port: 8080
health:
  http: {port: http, path: /}
  start: 30s
  interval: 500ms
  timeout: 2s
stop_timeout: 5s
"""
_PROGRAM = '''\
"""An agent that remembers how often it was started, and says so."""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

counter = Path(os.environ["HELLO_STATE"]) / "starts"
starts = int(counter.read_text()) + 1 if counter.exists() else 1
counter.with_suffix(".new").write_text(str(starts))
counter.with_suffix(".new").replace(counter)


class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"hello, this is start number {starts}\\n".encode())

    def log_message(self, *_):
        pass  # who asks is no news: the health check does it all the time


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print(f"start number {starts}", flush=True)
HTTPServer(("", int(os.environ["HELLO_PORT"])), Hello).serve_forever()
'''
_CONTAINERFILE = """\
ARG BASE=docker.io/library/python:3.13-slim
FROM ${BASE}
COPY hello.py /usr/local/lib/hello/hello.py
ENTRYPOINT ["python3", "/usr/local/lib/hello/hello.py"]
"""


def refuse_existing(directory: Path) -> None:
    """Raise `Conflict` where there is a configuration already."""
    path = directory.absolute() / FILE_NAME
    if path.exists():
        raise Conflict(
            f"{path} is there already", hint="edit it, or `lobstertrap doctor`"
        )


def make(directory: Path, *, store: str, endpoint: str | None) -> dict[str, Any]:
    """Write what is missing and return where everything is.

    The configuration comes last, so that a killed `init` can be run again.
    """
    refuse_existing(directory)
    key = Path(KEY_FILE).expanduser()
    try:
        _write_key(key)
        example = directory / "agents" / EXAMPLE
        for name, text in (
            ("agent.yaml", _SPEC),
            ("hello.py", _PROGRAM),
            ("Containerfile", _CONTAINERFILE),
        ):
            _write(example / name, text)
        _write(directory / FILE_NAME, _configuration(store, endpoint))
    except PermissionError as error:
        raise AccessDenied(
            f"{error.filename} may not be written", hint="choose another directory"
        ) from error
    path = (directory / FILE_NAME).absolute()
    config = load(directory, {**os.environ, "LOBSTERTRAP_CONFIG": str(path)})
    try:
        config.open_repository(create=True)
    except BaseException:
        path.unlink()  # so that the same command can be tried with another store
        raise
    return {
        "configuration": str(path),
        "agent": str(example.absolute()),
        "key": str(key),
        "store": store,
        "targets": list(config.target_names),
    }


def _configuration(store: str, endpoint: str | None) -> str:
    text = _CONFIG.format(
        store=json.dumps(store),
        endpoint=f"endpoint = {json.dumps(endpoint)}\n" if endpoint else "",
        key=KEY_FILE,
    )
    return text + (_PODMAN if which("podman") else "") + _CLUSTER


def _write(path: Path, text: str) -> None:
    """Write a file unless there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        new.write_text(text, "utf-8")
        new.rename(path)


def _write_key(path: Path) -> None:
    """Make a key that only its owner can read, unless there is one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(base64.b64encode(secrets.token_bytes(32)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # snapshots may need the older one
            path.hardlink_to(new)
    finally:
        new.unlink()
