"""The composition root: what lobstertrap.toml says, and the parts that it opens.

Nothing is opened, resolved or imported before it is asked for, so that a command which
only reads a name starts quickly.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pydantic import ValidationError

from lobstertrap.agent import AgentSpec, describe_mistakes, load_agent
from lobstertrap.config_file import (
    AnyTargetSection,
    ConfigFile,
    HostSection,
    KubernetesSection,
    PodmanSection,
)
from lobstertrap.errors import AccessDenied, InvalidInput, NotFound
from lobstertrap.lease import Lease, hold
from lobstertrap.lifecycle import AgentHandle
from lobstertrap.secret_ref import SecretRef
from lobstertrap.targets.base import Keeper

if TYPE_CHECKING:
    from lobstertrap.adopt import Originals
    from lobstertrap.redaction import SecretValue
    from lobstertrap.repository import Repository
    from lobstertrap.secrets import Lookup, Reader
    from lobstertrap.stores.base import ObjectStore
    from lobstertrap.stores.settings import StoreSettings
    from lobstertrap.targets.base import Secrets, Target
    from lobstertrap.targets.kubernetes_api import Access

FILE_NAME = "lobstertrap.toml"
VARIABLE = "LOBSTERTRAP_CONFIG"
_EXAMPLE = "copy lobstertrap.example.toml (see docs/configuration.md)"
_KIND_IN_PLACE = re.compile(
    r"(: targets\.[^.:\n]+)\.(?:host|podman|kubernetes)(?=[.:])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A loaded lobstertrap.toml; its methods open the parts, each time anew."""

    path: Path
    """The file itself; relative paths in it start at its directory."""
    file: ConfigFile
    environ: Mapping[str, str] = field(repr=False)
    readers: Mapping[str, Reader] = field(default_factory=dict)
    """Sources of secrets that are not the domain's own: `prefect`."""

    @property
    def agents_directory(self) -> Path:
        """Where the agents are: one directory each, with an agent.yaml."""
        return self.resolve_path(self.file.agents)

    @property
    def agent_names(self) -> tuple[str, ...]:
        """Every agent that has an agent.yaml, whether it is valid or not."""
        found = self.agents_directory.glob("*/agent.yaml")
        return tuple(sorted(path.parent.name for path in found))

    @property
    def target_names(self) -> tuple[str, ...]:
        """Every target, in the file's order."""
        return tuple(self.file.targets)

    def agent(self, name: str) -> AgentSpec:
        """Load one agent; `NotFound` with the known ones, `InvalidInput` if wrong."""
        if name not in self.agent_names:
            where = f"in {self.agents_directory}"
            raise _unknown("agent", name, self.agent_names, where)
        path = self.agents_directory / name / "agent.yaml"
        spec = load_agent(path)
        if spec.name != name:
            raise InvalidInput(
                f"{path}: name: the directory's name is expected (found {spec.name!r})",
                hint=f"write name: {name}, or rename the directory",
            )
        return spec

    def agents(self) -> tuple[AgentSpec, ...]:
        """Load every agent; the first that is wrong raises."""
        return tuple(self.agent(name) for name in self.agent_names)

    def target(self, name: str) -> Target:
        """Open one target; `NotFound` with the known ones."""
        section = self.require_target(name)
        return _OPENERS[section.kind](self, name, section)

    def originals(self, name: str) -> Originals:
        """Open what looks after other tools' agents on a target; `NotFound` if none."""
        section = self.require_target(name)
        return _FINDERS[section.kind](self, name, section)

    def require_target(self, name: str) -> AnyTargetSection:
        """Return what the file says of a target, or raise `NotFound`; opens nothing."""
        section = self.file.targets.get(name)
        if section is None:
            raise _unknown("target", name, self.target_names, f"in {self.path}")
        return section

    def store_settings(self) -> StoreSettings:
        """Return all that a mover elsewhere needs, boto3's own credentials included."""
        from lobstertrap.stores import with_credentials  # noqa: PLC0415 - keep light

        return with_credentials(self._written_settings())

    def open_store(self) -> ObjectStore:
        """Open the store; credentials that boto3 finds by itself stay refreshable."""
        from lobstertrap.stores import open_store  # noqa: PLC0415 - keep light

        return open_store(self._written_settings())

    def repository_key(self) -> SecretValue:
        """Resolve the repository's key; `SecretMissing` when it is not there."""
        return self._resolve({"repository.key": self.file.repository.key})[
            "repository.key"
        ]

    def open_repository(self, *, create: bool = False) -> Repository:
        """Open the repository, or make it when asked and there is none yet."""
        from lobstertrap.repository import Repository  # noqa: PLC0415 - keep light
        from lobstertrap.repository.cache import user_cache  # noqa: PLC0415

        store, key = self.open_store(), self.repository_key()
        try:
            return Repository.open(store, key, cache_dir=user_cache())
        except NotFound:
            if not create:
                raise
        return Repository.create(store, key)

    def resolve_secrets(
        self, agent: AgentSpec, repository: Repository | None = None
    ) -> Secrets:
        """Resolve every secret of `agent` that does not live on a target.

        With an open `repository` each value is marked by its keyed digest.
        """
        return _marked(agent, self._resolve(agent.secrets), repository)

    def look_up_secrets(
        self, agent: AgentSpec, repository: Repository | None = None
    ) -> Lookup:
        """Resolve what can be resolved, and say why the rest cannot."""
        from lobstertrap.secrets import look_up  # noqa: PLC0415 - keep light

        refs, providers = agent.secrets, self._providers()
        found = look_up(refs, providers, self.environ, self.readers)
        return replace(found, values=_marked(agent, found.values, repository))

    def handle(
        self,
        agent: str,
        lease: Lease,
        repository: Repository | None = None,
        *,
        until: ExitStack | None = None,
    ) -> AgentHandle:
        """Return all that is needed to act on `agent` under `lease`.

        With an open `repository` its movers need not derive its key again. What a
        target keeps from step to step it keeps until `until` is closed.
        """
        spec = self.agent(agent)

        @functools.cache
        def target(name: str) -> Target:
            opened = self.target(name)
            if until is not None and isinstance(opened, Keeper):
                until.callback(opened.close)
            return opened

        return AgentHandle(
            spec=spec,
            lease=lease,
            target=target,
            secrets=lambda: self.resolve_secrets(spec, repository),
            known_secrets=functools.cache(lambda: self.look_up_secrets(spec).values),
            mover_request=lambda: self.mover_request(repository),
        )

    @contextmanager
    def hold(
        self, agent: str, kind: str, *, repository: bool = True
    ) -> Iterator[AgentHandle]:
        """Hold `agent` for one operation of `kind`, in the world.

        Before anything is written, the store is shown to honour conditions and the
        repository to open with the key; it is made when there is none yet. Without
        `repository` it is left alone, so that an agent can be stopped without the key.
        """
        from lobstertrap.stores.conditions import (  # noqa: PLC0415 - keep light
            require_conditional_writes,
        )

        self.agent(agent)  # a wrong name or spec fails before the store is touched
        store = self.open_store()
        require_conditional_writes(store)
        opened = self.open_repository(create=True) if repository else None
        with hold(store, agent, kind) as held, ExitStack() as until:
            yield self.handle(agent, held, opened, until=until)

    def resume_hold(self, agent: str, operation: str) -> AgentHandle:
        """Return the handle of an operation that this program holds elsewhere."""
        return self.handle(agent, Lease(self.open_store(), agent, operation))

    def mover_request(self, repository: Repository | None = None) -> dict[str, Any]:
        """Return what a mover needs to reach the repository: secrets in plain text."""
        unlocked = {"master": repository.keys.master.hex()} if repository else {}
        return {
            "store": self.store_settings().to_dict(),
            "key": self.repository_key().reveal(),
            "cache": True,
            **unlocked,
        }

    def resolve_path(self, text: str) -> Path:
        """Return `text` as an absolute path: `~` is home, relative is to the file."""
        home = self.environ.get("HOME")
        if home and (text == "~" or text.startswith("~/")):
            text = home + text[1:]
        return self.path.parent / Path(text).expanduser()

    def _written_settings(self) -> StoreSettings:
        from lobstertrap.stores.settings import StoreSettings  # noqa: PLC0415 - light

        store = self.file.store
        refs = {
            name: ref
            for name in ("access_key", "secret_key", "session_token")
            if (ref := getattr(store, name)) is not None
        }
        return StoreSettings(
            url=self._store_url(),
            endpoint=store.endpoint,
            region=store.region,
            **self._resolve(refs),
        )

    def _store_url(self) -> str:
        url = self.file.store.url
        if not url.startswith("file://~/"):
            return url
        home = quote(str(self.resolve_path("~")))
        return f"file://{home}/{url.removeprefix('file://~/')}"

    def _resolve(self, refs: Mapping[str, SecretRef]) -> dict[str, SecretValue]:
        from lobstertrap.secrets import resolve  # noqa: PLC0415 - keep light

        return dict(resolve(refs, self._providers(), self.environ, self.readers))

    def _providers(self) -> dict[str, dict[str, Any]]:
        """Return what the secrets' providers are, with absolute paths."""
        found: dict[str, dict[str, Any]] = {}
        for name, provider in self.file.secrets.providers.items():
            said = found[name] = provider.model_dump()
            for key in said.keys() & {"path", "command"}:
                said[key] = str(self.resolve_path(said[key]))
            if "trusted_dirs" in said:
                dirs = said["trusted_dirs"]
                said["trusted_dirs"] = [str(self.resolve_path(d)) for d in dirs]
        return found


def load(
    start: Path,
    environ: Mapping[str, str],
    readers: Mapping[str, Reader] = MappingProxyType({}),
) -> Config:
    """Find and validate lobstertrap.toml: from `start` upwards, or LOBSTERTRAP_CONFIG.

    `readers` read the secrets of sources that are not the domain's own, `prefect`.
    Raises `NotFound` when there is none, `InvalidInput` with one line per mistake.
    """
    path = _find(start, environ)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise AccessDenied(f"{path}: may not be read") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: not TOML: {error}", hint=_EXAMPLE) from error
    try:
        file = ConfigFile.model_validate(raw)
    except ValidationError as error:
        # pydantic puts the kind of a target into the path of its fields
        told = _KIND_IN_PLACE.sub(r"\1", describe_mistakes(path, error))
        raise InvalidInput(told, hint=_EXAMPLE) from None
    return Config(path=path, file=file, environ=environ, readers=readers)


def _marked(
    agent: AgentSpec, values: Mapping[str, SecretValue], repository: Repository | None
) -> dict[str, SecretValue]:
    if repository is None:
        return dict(values)
    from lobstertrap.redaction import SecretValue  # noqa: PLC0415 - keep light

    mark = repository.keys.secret_mark
    return {
        name: SecretValue(plain, mark=mark(agent.name, name, plain))
        for name, plain in ((name, value.reveal()) for name, value in values.items())
    }


def _find(start: Path, environ: Mapping[str, str]) -> Path:
    given = environ.get(VARIABLE)
    if given:
        path = start.absolute() / Path(given).expanduser()
        if path.is_file():
            return path
        raise NotFound(f"{VARIABLE} names {path}, which is no file", hint=_EXAMPLE)
    for directory in (start.absolute(), *start.absolute().parents):
        if (directory / FILE_NAME).is_file():
            return directory / FILE_NAME
    raise NotFound(
        f"no {FILE_NAME} in {start.absolute()} or above it",
        hint=f"{_EXAMPLE}, or set {VARIABLE}",
    )


def _unknown(kind: str, name: str, known: Iterable[str], where: str) -> NotFound:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    listed = f"known: {', '.join(names)}" if names else f"there is no {kind} at all"
    hint = f"did you mean '{near[0]}'?" if near else f"use one of the known {kind}s"
    # A name may come from anywhere: as `repr` has it, it stays one harmless line.
    return NotFound(f"no {kind} {name!r} {where}; {listed}", hint=hint)


def _open_host(config: Config, name: str, section: HostSection) -> Target:
    from lobstertrap.targets.host import HostTarget  # noqa: PLC0415 - when asked for

    return HostTarget(name, config.resolve_path(section.root))


def _open_podman(config: Config, name: str, section: PodmanSection) -> Target:
    from lobstertrap.targets.podman import PodmanTarget  # noqa: PLC0415 - an extra

    identity = config.resolve_path(section.identity) if section.identity else None
    return PodmanTarget(
        name,
        section.url or _podman_socket(config.environ),
        build_args=section.build_args,
        identity=identity,
    )


def _open_kubernetes(config: Config, name: str, section: KubernetesSection) -> Target:
    from lobstertrap.targets.kubernetes import (  # noqa: PLC0415 - an extra
        KubernetesTarget,
    )

    given = config.environ
    options = section.model_dump(exclude={"kind", "context", "kubeconfig"})
    if section.registry and not section.engine:
        options["engine"] = _podman_socket(given)
    access = _access(config, section)
    return KubernetesTarget(name, access, auth_files=_auth_files(given), **options)


def _access(config: Config, section: KubernetesSection) -> Access:
    from lobstertrap.targets.kubernetes_api import Access  # noqa: PLC0415 - an extra

    given = config.environ
    inside = "KUBERNETES_SERVICE_HOST" in given and "KUBECONFIG" not in given
    return Access(
        kubeconfig=config.resolve_path(section.kubeconfig)
        if section.kubeconfig
        else None,
        context=section.context,
        in_cluster=inside and not (section.kubeconfig or section.context),
    )


def _auth_files(environ: Mapping[str, str]) -> list[Path]:
    """Return where `podman login` and `docker login` keep registries' credentials."""
    places = [("XDG_RUNTIME_DIR", "containers"), ("HOME", ".config/containers")]
    files = [Path(environ[v], p, "auth.json") for v, p in places if v in environ]
    if "HOME" in environ:
        files.append(Path(environ["HOME"], ".docker", "config.json"))
    if os.geteuid() == 0:
        files.append(Path("/run/containers/0/auth.json"))
    return files


def _find_on_host(config: Config, name: str, _section: HostSection) -> Originals:
    from lobstertrap.adopt.host import HostOriginals  # noqa: PLC0415 - when asked for

    return HostOriginals(home=config.resolve_path("~"), target=name)


def _find_in_podman(config: Config, name: str, section: PodmanSection) -> Originals:
    from lobstertrap.adopt.podman import PodmanOriginals  # noqa: PLC0415 - an extra
    from lobstertrap.targets.podman_api import PodmanApi  # noqa: PLC0415 - an extra

    identity = config.resolve_path(section.identity) if section.identity else None
    url = section.url or _podman_socket(config.environ)
    return PodmanOriginals(api=PodmanApi(name, url, identity=identity), target=name)


def _find_in_cluster(
    config: Config, name: str, section: KubernetesSection
) -> Originals:
    from lobstertrap.adopt.kubernetes import (  # noqa: PLC0415 - an extra
        ClusterOriginals,
    )
    from lobstertrap.targets.kubernetes_api import (  # noqa: PLC0415 - an extra
        KubernetesApi,
    )

    access = _access(config, section)
    return ClusterOriginals(
        open_namespace=functools.cache(
            lambda namespace: KubernetesApi(name, access, namespace)
        ),
        namespace=section.namespace,
        target=name,
    )


_FINDERS: Mapping[str, Callable[[Config, str, Any], Originals]] = {
    "host": _find_on_host,
    "podman": _find_in_podman,
    "kubernetes": _find_in_cluster,
}
_OPENERS: Mapping[str, Callable[[Config, str, Any], Target]] = {
    "host": _open_host,
    "podman": _open_podman,
    "kubernetes": _open_kubernetes,
}


def _podman_socket(environ: Mapping[str, str]) -> str:
    """Return the URL where Podman's own units put the invoking user's socket."""
    uid = os.geteuid()
    runtime = "/run" if uid == 0 else environ.get("XDG_RUNTIME_DIR", f"/run/user/{uid}")
    return f"unix://{runtime}/podman/podman.sock"
