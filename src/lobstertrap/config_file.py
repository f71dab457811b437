"""The shape of lobstertrap.toml: sections, defaults and what is allowed in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic.alias_generators import to_camel

from lobstertrap.agent import Egress, Name
from lobstertrap.errors import InvalidInput
from lobstertrap.secret_ref import SecretRef, SecretRefField
from lobstertrap.stores.settings import check_endpoint, parse_url


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _store_url(url: str) -> str:
    _explain(parse_url, url.replace("file://~/", "file:///", 1))
    return url


def _endpoint(url: str) -> str:
    _explain(check_endpoint, url)
    return url


def _explain(check: Callable[[str], object], url: str) -> None:
    try:
        check(url)
    except InvalidInput as error:
        hint = f"; {error.hint}" if error.hint else ""
        raise ValueError(f"{error.message}{hint}") from error


class StoreSection(_Section):
    """Where snapshots and agent records are kept."""

    url: Annotated[str, AfterValidator(_store_url)]
    """`s3://bucket/prefix`, `file:///path` or `file://~/path`."""
    endpoint: Annotated[str, AfterValidator(_endpoint)] | None = None
    """The `http(s)://` address of an S3 server; AWS itself by default."""
    region: str | None = None
    """The region, where the server wants one."""
    access_key: SecretRefField | None = None
    """Without it: whatever credentials boto3 finds by itself."""
    secret_key: SecretRefField | None = None
    """Goes with `access_key`."""
    session_token: SecretRefField | None = None
    """For credentials that last for a while only."""


class RepositorySection(_Section):
    """The key that encrypts every snapshot; without it they are noise."""

    key: SecretRefField
    """Where the passphrase that opens the repository is found."""


class _Provider(BaseModel):
    """A section with OpenClaw's own keys, so that one can be copied from there."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
    )


class EnvProvider(_Provider):
    """Variables of the environment, perhaps only some of them."""

    source: Literal["env"]
    """Variables where `lobstertrap` runs."""
    allowlist: list[str] | None = None
    """The only variables that may be read; any by default."""


class FileProvider(_Provider):
    """A file of secrets that `{ source = "file", provider = NAME, id = ... }` names."""

    source: Literal["file"]
    """A file of this machine."""
    path: str
    """Where it is; only its owner may be able to read it."""
    mode: Literal["json", "singleValue"] = "json"
    """A JSON object that ids point into, or one value, whose id is `value`."""
    timeout_ms: int = Field(default=5000, gt=0)
    """How long a read may take."""
    max_bytes: int = Field(default=2**20, gt=0)
    """How large it may be."""


class ExecProvider(_Provider):
    """A program that is asked for secrets, by OpenClaw's exec protocol."""

    source: Literal["exec"]
    """A program that is asked."""
    command: str = Field(pattern=r"^[/~]")
    """Its absolute path; no shell is involved."""
    args: list[str] = Field(default_factory=list)
    """Its arguments; nothing secret."""
    pass_env: list[str] = Field(default_factory=list)
    """Variables that it gets from the environment of the command; no others."""
    env: dict[str, str] = Field(default_factory=dict)
    """Variables that it gets besides; nothing secret."""
    timeout_ms: int = Field(default=5000, gt=0)
    """How long it may take."""
    no_output_timeout_ms: int | None = Field(default=None, gt=0)
    """How long it may print nothing; as long as `timeoutMs` by default."""
    max_output_bytes: int = Field(default=2**20, gt=0)
    """How much it may answer."""
    json_only: bool = True
    """With false, a single value may be answered as plain text."""
    trusted_dirs: list[str] = Field(default_factory=list)
    """Directories of which one must hold the program; anywhere by default."""


ProviderSection = Annotated[
    EnvProvider | FileProvider | ExecProvider, Field(discriminator="source")
]


class SecretsSection(_Section):
    """The named places where secrets are read from."""

    providers: dict[
        Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")], ProviderSection
    ] = Field(default_factory=dict)
    """By the name that references use."""


class HostSection(_Section):
    """A target that runs agents as plain processes of this machine."""

    kind: Literal["host"]
    """Plain processes of this machine."""
    root: str
    """The directory that holds the agents' volumes, logs and state."""


class PodmanSection(_Section):
    """A target that runs agents as containers of one Podman engine."""

    kind: Literal["podman"]
    """Containers of a Podman engine."""
    url: str | None = Field(default=None, pattern=r"^(unix|ssh|tcp)://\S+$")
    """`unix://`, `ssh://` or `tcp://`; the invoking user's own socket by default."""
    identity: str | None = None
    """The private key file of an `ssh://` URL."""
    build_args: dict[str, str] = Field(default_factory=dict)
    """Given to every build on this target, such as the base image."""


class KubernetesSection(_Section):
    """A target that runs agents as pods in one namespace of a cluster."""

    kind: Literal["kubernetes"]
    """Pods of a cluster."""
    context: str | None = None
    """The kubeconfig's context; its current one by default."""
    kubeconfig: str | None = None
    """By default KUBECONFIG, ~/.kube/config, or the pod's own service account."""
    namespace: str = Field(
        default="lobstertrap", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
    )
    """The one namespace that holds all of it."""
    storage_class: str | None = None
    """Of the claims; the cluster's default when it is not given."""
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany"] = "ReadWriteOnce"
    """Of the claims."""
    registry: str | None = Field(default=None, pattern=r"^[^/\s:]+(:\d+)?(/\S+)?$")
    """`host[:port]/path` where `engine` pushes images, and the cluster pulls them."""
    insecure_registry: bool = False
    """Whether the registry speaks plain HTTP."""
    pull_secret: str | None = None
    """An existing Secret in the namespace, with which the cluster pulls."""
    engine: str | None = Field(default=None, pattern=r"^(unix|ssh|tcp)://\S+$")
    """The Podman that builds and pushes; the invoking user's own by default."""
    build_args: dict[str, str] = Field(default_factory=dict)
    """Given to every build for this target."""
    mover_image: str | None = None
    """A mover image that the cluster can pull; our own is pushed by default."""
    platform: str | None = Field(default=None, pattern=r"^linux/[a-z0-9]+(/v\d+)?$")
    """Of the nodes; by default what they all are, or else the API server's own."""
    user: int | None = Field(default=None, ge=1, le=2**31 - 2)
    """The uid and gid of agents there; each agent's own by default."""
    egress: list[Egress] = Field(default_factory=list)
    """Where every agent there may connect to, besides DNS: `0.0.0.0/0:443`."""


def _known_kind(value: object) -> object:
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in ("host", "podman", "kubernetes"):
        raise ValueError('kind is "host", "podman" or "kubernetes"')
    return value


AnyTargetSection = HostSection | PodmanSection | KubernetesSection
TargetSection = Annotated[
    Annotated[AnyTargetSection, Field(discriminator="kind")],
    BeforeValidator(_known_kind),
]


class ConfigFile(_Section):
    """The shape of lobstertrap.toml."""

    agents: str = "agents"
    """The directory of agents, relative to the file."""
    store: StoreSection
    """Where snapshots and agent records are kept."""
    repository: RepositorySection
    """How snapshots are encrypted."""
    secrets: SecretsSection = SecretsSection()
    """Where secrets are read from."""
    targets: dict[Name, TargetSection] = Field(min_length=1)
    """By its name, each place where agents run."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [*self._problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        store = self.store
        if (store.access_key is None) != (store.secret_key is None):
            yield "store: access_key and secret_key go together"
        for place, ref in self._refs():
            found = self.secrets.providers.get(ref.provider)
            if ref.source == "target":
                yield f"{place}: source is env, file, exec or prefect: no target here"
            elif found is not None and found.source != ref.source:
                yield f"{place}: '{ref.provider}' is no provider of source {ref.source}"
            elif found is None and (
                ref.source in ("file", "exec")
                or (ref.source == "env" and ref.provider != "default")
            ):
                yield f"{place}: no [secrets.providers.{ref.provider}]"

    def _refs(self) -> Iterator[tuple[str, SecretRef]]:
        yield "repository.key", self.repository.key
        for name in ("access_key", "secret_key", "session_token"):
            ref = getattr(self.store, name)
            if ref is not None:
                yield f"store.{name}", ref
