"""The demo's own little world: targets, S3 and Prefect, all in one directory."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from lobstertrap import config
from lobstertrap.cli.checkout import find_checkout
from lobstertrap.cli.demo_cluster import DemoCluster, Wanted
from lobstertrap.cli.demo_traces import MARK, claim, leftovers, sweep
from lobstertrap.cli.prefect_server import PrefectServer
from lobstertrap.cli.serve import FlowRunner
from lobstertrap.errors import LobsterTrapError, Unavailable
from lobstertrap.redaction import SecretValue
from lobstertrap.stores.seaweedfs import SeaweedFS
from lobstertrap.stores.settings import StoreSettings
from lobstertrap.targets.podman_engine import PodmanEngine

Kinds = Literal["auto", "host", "podman"]
AGENT, SOURCE, DESTINATION = "tally", "laptop", "server"
TOKEN = "TALLY_TOKEN"  # noqa: S105 - the variable's name, not its value

_CONFIG = """\
agents = "{agents}"

[store]
url = "{url}"
endpoint = "{endpoint}"
region = "us-east-1"
access_key = "${{DEMO_ACCESS_KEY}}"
secret_key = "${{DEMO_SECRET_KEY}}"

[repository]
key = "${{DEMO_REPOSITORY_KEY}}"
"""
_HOST = '\n[targets.{name}]\nkind = "host"\nroot = "{name}"\n'
_PODMAN = """
[targets.{name}]
kind = "podman"
url = "{url}"
build_args = {{ BASE = "{base}" }}
"""
_BASE = "localhost/lobstertrap/demo-base:1"
_BUILDER = "builder"
"""The engine that makes images for a cluster when the source is no Podman."""


class Stage:
    """What the demo plays on; entering starts it, leaving removes every trace of it."""

    def __init__(
        self, directory: Path, kinds: Kinds, cluster: Wanted | None = None
    ) -> None:
        self.directory = directory.absolute()
        self._cluster = None if cluster is None else DemoCluster(cluster, directory)
        self.began = time.monotonic()
        self.engines: dict[str, PodmanEngine] = {}
        self.note = ""
        """Why there is no Podman, when it was wanted."""
        self.server = PrefectServer(self.directory / "prefect")
        self._kinds = kinds
        self._ui = contextlib.ExitStack()
        self._rest = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._ui.enter_context(claim(self.directory))
            self._ui.callback(sweep, self.directory, keep_lock=False)
            sweep(self.directory)
            os.environ[MARK] = str(self.directory)  # every child process inherits it
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._ui:
            self._rest.close()

    @property
    def config(self) -> config.Config:
        """The demo's lobstertrap.toml."""
        return config.load(self.directory, os.environ)

    def close_all_but_the_ui(self) -> list[str]:
        """Stop everything but Prefect's server; return what should be gone."""
        self._rest.close()
        left = self._cluster.leftovers() if self._cluster else []
        return leftovers(self.directory, but=self.server.pid) + left

    def _start(self) -> None:
        self.server.begin()  # it takes the longest: the others start meanwhile
        self._ui.callback(self.server.stop)
        store = self._rest.enter_context(SeaweedFS(self.directory / "s3"))
        settings = store.settings
        if self._cluster is not None:
            way = self._cluster.opened(str(settings.endpoint))
            settings = replace(settings, endpoint=self._rest.enter_context(way))
        self._start_engines()
        self._write_config(settings)
        self._check_cluster(settings)
        self.server.wait()
        os.environ |= self.server.client_environment(os.environ)
        self._rest.enter_context(
            FlowRunner(
                self.server,
                self.directory / config.FILE_NAME,
                log=self.directory / "flows.log",
                scheduled=False,  # nothing but what is shown
            )
        )

    def _start_engines(self) -> None:
        both = [SOURCE, DESTINATION]
        names: dict[Kinds, list[str]] = {"host": [], "podman": both, "auto": both}
        wanted = names[self._kinds]
        if self._cluster is not None:
            wanted = [_BUILDER] if self._kinds == "host" else [SOURCE]
        try:
            for name in wanted:
                engine = PodmanEngine(self.directory / name)
                self.engines[name] = self._rest.enter_context(engine)
            if self.engines:
                self._load_base_image()
                self._try_a_container()
        except LobsterTrapError as error:
            if self._kinds != "auto" or self._cluster is not None:
                raise
            self.engines.clear()
            self.note = error.message

    def _load_base_image(self) -> None:
        """Give the engines a base image of this Python: no registry is needed."""
        command = [
            sys.executable,
            str(find_checkout() / "deployments/base-image/build"),
        ]
        command += ["--tag", _BASE]
        for engine in self.engines.values():
            command += ["--load", engine.url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(
                f"no base image for the demo could be made: {done.stderr.strip()}",
                hint="try `lobstertrap demo --targets host`",
            )

    def _try_a_container(self) -> None:
        """Find out now whether containers run here at all."""
        for engine in self.engines.values():
            engine.run("run", "--rm", _BASE, "python3", "-c", "pass")

    def _write_config(self, store: StoreSettings) -> None:
        agents = find_checkout() / "agents"
        text = _CONFIG.format(agents=agents, url=store.url, endpoint=store.endpoint)
        for name in (SOURCE, DESTINATION):
            if name == DESTINATION and self._cluster is not None:
                url = next(iter(self.engines.values())).url
                text += self._cluster.section(name, engine=url, base=_BASE)
                continue
            engine = self.engines.get(name)
            shape, url = (_PODMAN, engine.url) if engine else (_HOST, "")
            text += shape.format(name=name, url=url, base=_BASE)
        path = self.directory / config.FILE_NAME
        path.write_text(text, encoding="utf-8")
        os.environ |= {
            config.VARIABLE: str(path),
            "DEMO_ACCESS_KEY": _plain(store.access_key),
            "DEMO_SECRET_KEY": _plain(store.secret_key),
            "DEMO_REPOSITORY_KEY": secrets.token_urlsafe(24),
            TOKEN: secrets.token_urlsafe(24),
        }

    def _check_cluster(self, store: StoreSettings) -> None:
        """Find out now whether the cluster has all that the demo needs."""
        if self._cluster is None:
            return
        config = self.config
        target, agent = config.target(DESTINATION), config.agent(AGENT)
        self._cluster.check(target, agent, str(store.endpoint))


def _plain(value: SecretValue | None) -> str:
    return value.reveal() if value else ""
