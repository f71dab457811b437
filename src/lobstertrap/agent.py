"""The agent spec: what `agents/NAME/agent.yaml` says, validated once, at the edge."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from lobstertrap.errors import InvalidInput, NotFound
from lobstertrap.inference import PRESETS, Preset, base_url_name
from lobstertrap.secret_ref import SecretRef, SecretRefField

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]i?)?B?")
_BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BYTES |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def _duration(value: object) -> object:
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            msg = "a duration is a number and one of ms, s, m, h: 30s"
            raise ValueError(msg)
        return float(match[1]) * _SECONDS[match[2]]
    return value


def parse_size(value: object) -> object:
    """Return bytes for `512Mi`, `1G` or a plain number; anything else unchanged."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            msg = "a size is a number of bytes or a number and Ki, Mi, Gi, Ti: 512Mi"
            raise ValueError(msg)
        return int(float(match[1]) * _BYTES[match[2] or ""])
    return value


def _absolute(value: str) -> str:
    path = PurePosixPath(value)
    if not path.is_absolute() or ".." in path.parts or str(path) == "/":
        msg = "an absolute path below / without '..': /home/agent/state"
        raise ValueError(msg)
    return str(path)


def split_egress(text: str) -> tuple[str, int | None]:
    """Return the block and the port of `CIDR` or `CIDR:PORT`."""
    block, colon, port = text.rpartition(":")
    if colon and "/" in block:
        return block, int(port) if port.isdecimal() else 0
    return text, None


def _egress(text: str) -> str:
    block, port = split_egress(text)
    allowed = "/" in block and (port is None or 0 < port < 2**16)
    try:
        ipaddress.ip_network(block)
    except ValueError:
        allowed = False
    if not allowed:
        msg = "a block of addresses and perhaps a port, no host name: 0.0.0.0/0:443"
        raise ValueError(msg)
    return text


Egress = Annotated[str, AfterValidator(_egress)]
"""Where an agent may connect to: `CIDR` or, for one TCP port, `CIDR:PORT`."""

Seconds = Annotated[
    float,
    BeforeValidator(_duration),
    Field(gt=0),
    WithJsonSchema(
        {"type": ["string", "number"], "examples": ["30s", "1m", 5]},
        mode="validation",
    ),
]
"""Seconds; written as `30s`, `500ms`, `2m`, `1h` or a number."""

Size = Annotated[
    int,
    BeforeValidator(parse_size),
    Field(gt=0),
    WithJsonSchema(
        {"type": ["string", "integer"], "examples": ["512Mi", "1Gi"]},
        mode="validation",
    ),
]
"""Bytes; written as `512Mi`, `1Gi`, `1G` or a number."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
"""Lower-case letters, digits and dashes, at most 40: valid in every target."""

EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Build(_Model):
    """A build context; paths are relative to the agent's directory."""

    context: str = "."
    """The directory that is sent to the build."""
    containerfile: str = "Containerfile"
    """The recipe, in the context."""
    args: dict[str, str] = Field(default_factory=dict)
    """Arguments of the build; a target's own win."""


class Volume(_Model):
    """A directory of state that must never be lost."""

    name: Name
    """What snapshots and placeholders call it."""
    path: AbsolutePath
    """Where it is in the container."""
    size: Size = 2**30
    """How large a claim is made, where the target has claims."""
    exclude: list[str] = Field(default_factory=list)
    """Patterns as in .gitignore, relative to the volume; what need not travel."""


class Port(_Model):
    """A port that the agent listens on."""

    name: Name
    """What health checks and placeholders call it."""
    port: int = Field(ge=1, le=65535)
    """The number inside of the container."""
    publish: int | None = Field(default=None, ge=1, le=65535)
    """The port on the target's loopback; a free one is chosen when it is not given."""


class HttpProbe(_Model):
    """Ready means: GET answers 2xx or 3xx."""

    port: Name
    """The name of one of `ports`."""
    path: str = Field(default="/", pattern=r"^/")
    """What is asked for."""


class Health(_Model):
    """How readiness is seen: an HTTP path, or a command's exit status 0."""

    http: HttpProbe | None = None
    """Ready when GET answers 2xx or 3xx; or `command`."""
    command: list[str] | None = Field(default=None, min_length=1)
    """Ready when it exits with 0, run beside the agent."""
    start: Seconds = 60.0
    """How long the agent may take to become ready."""
    interval: Seconds = 1.0
    """How long between two looks."""
    timeout: Seconds = 5.0
    """How long one look may take."""

    @model_validator(mode="after")
    def _one_probe(self) -> Self:
        if (self.http is None) == (self.command is None):
            msg = "exactly one of http and command"
            raise ValueError(msg)
        return self


class Resources(_Model):
    """Upper limits, where the target can enforce them."""

    memory: Size = 2**30
    """More than this and it is killed."""
    cpus: float = Field(default=1.0, gt=0)
    """How many cores it may use."""
    pids: int = Field(default=256, gt=0)
    """How many processes and threads it may have."""


class Security(_Model):
    """Hardened by default; every field here relaxes one thing."""

    user: int = Field(default=1000, ge=0)
    """The uid that it runs as."""
    group: int = Field(default=1000, ge=0)
    """The gid that it runs as."""
    read_only_root: bool = True
    """Whether only volumes and `tmpfs` take a file."""
    capabilities: list[str] = Field(default_factory=list)
    """Capabilities to add back; all are dropped."""
    no_new_privileges: bool = True
    """Whether setuid programs give nothing."""
    tmpfs: list[AbsolutePath] = Field(default_factory=lambda: ["/tmp"])  # noqa: S108
    """Directories in memory that it may write."""


class SnapshotRule(_Model):
    """How the agent is held still while a snapshot of it is taken."""

    mode: Literal["stop", "freeze", "hook", "live"] = "stop"
    """`stop` and start it, `freeze` its processes, run the `before` and `after`
    commands, or `live`: not of one point in time."""
    before: list[str] = Field(default_factory=list)
    """For `hook`: makes what is on disk whole, and keeps it so."""
    after: list[str] = Field(default_factory=list)
    """For `hook`: lets it go on. It is always run, perhaps twice."""
    timeout: Seconds = 60.0
    """How long it may be frozen, and how long each command may take."""
    leaks: Literal["warn", "refuse", "off"] = "warn"
    """What becomes of a snapshot when files hold the agent's own secrets or what looks
    like somebody's token: they are named, or there is no snapshot."""

    @model_validator(mode="after")
    def _hooks(self) -> Self:
        if (self.mode == "hook") != bool(self.before):
            msg = "mode hook and the before command go together"
            raise ValueError(msg)
        if self.after and not self.before:
            msg = "after needs before"
            raise ValueError(msg)
        return self


class Verification(_Model):
    """What must succeed where the agent has moved to, before that is final."""

    commands: list[Annotated[list[str], Field(min_length=1)]] = Field(min_length=1)
    """Each is run beside the healthy agent, as its user; its exit status must be 0."""
    timeout: Seconds = 120.0
    """How long each command may take."""


class HostRun(_Model):
    """How the agent runs as a plain process on a host target."""

    command: list[str] = Field(min_length=1)
    """The program and its arguments; no shell is involved."""


class Inference(_Model):
    """An inference provider that the agent uses: a preset's name, or an endpoint."""

    name: Name
    """`anthropic`, `google`, `openai`, `openrouter`; or any name, with `url` and `env`
    of an endpoint that is compatible with OpenAI's."""
    url: str | None = Field(default=None, pattern=r"^https?://[^\s/@]+(/[^\s?#]*)?$")
    """The base of its API; the agent finds it in the variable `..._BASE_URL`."""
    env: str | None = Field(default=None, pattern=r"^[A-Z][A-Z0-9_]{0,127}$")
    """The variable that holds the key."""
    key: SecretRefField | None = None
    """Where the key is; the variable of the same name by default."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in PRESETS and not (self.url and self.env):
            known = ", ".join(PRESETS)
            msg = f"one of {known}, or a name with url and env"
            raise ValueError(msg)
        return self

    @property
    def preset(self) -> Preset:
        """Return what is known of its API."""
        known = PRESETS.get(self.name)
        url = (self.url or "").rstrip("/")
        if known is None:
            return Preset(name=self.name, env=self.env or "", url=url)
        return replace(known, url=url or known.url, env=self.env or known.env)


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class AgentSpec(_Model):
    """An agent: an image, a few secrets, and volumes that must never be lost.

    In `command`, `host.command` and the values of `env` these are replaced by the
    target: `{volumes.NAME}` the path where the volume is, `{ports.NAME}` the port to
    listen on, `{agent}` the agent's own directory (host targets only).
    """

    name: Name
    """The directory's name."""
    labels: list[Name] = Field(default_factory=list)
    """Words by which agents are chosen, as in `drain --label`."""
    image: str | None = Field(default=None, min_length=1)
    """A reference, best by digest; or `build`."""
    build: Build | None = None
    """How the image is made; or `image`."""
    command: list[str] = Field(default_factory=list)
    """What it runs; the image's own, if empty."""
    hostname: Name | None = None
    """The same on every target; the agent's name when it is not given."""
    volumes: list[Volume] = Field(min_length=1)
    """The directories that must never be lost."""
    secrets: dict[EnvName, SecretRefField] = Field(default_factory=dict)
    """By the variable that holds it: where each secret is found."""
    secret_files: dict[EnvName, AbsolutePath] = Field(default_factory=dict)
    """Which of `secrets` are files, and where: in directories that hold nothing else.
    `NAME_FILE` then holds the path, and the environment no value."""
    inference: list[Annotated[Inference, BeforeValidator(_named)]] = Field(
        default_factory=list
    )
    """Inference providers that it uses; each adds the secret that it needs."""
    env: dict[EnvName, str] = Field(default_factory=dict)
    """Variables that are not secret."""
    ports: list[Port] = Field(default_factory=list)
    """Where it listens."""
    egress: list[Egress] = Field(default_factory=list)
    """Where it may connect to besides DNS, where the target can enforce that."""
    health: Health | None = None
    """When it counts as ready; without this, as soon as it runs."""
    resources: Resources = Resources()
    """Upper limits."""
    stop_timeout: Seconds = 30.0
    """How long it may take to end before it is killed."""
    snapshot: SnapshotRule = SnapshotRule()
    """How it is held still for a snapshot."""
    verify: Verification | None = None
    """What must succeed after a move, before it is final."""
    security: Security = Security()
    """What is relaxed; nothing by default."""
    host: HostRun | None = None
    """How it runs on host targets, as a plain process."""

    _directory: Path = PrivateAttr(default=Path())

    @property
    def directory(self) -> Path:
        """The directory of the agent.yaml, to which the build context is relative."""
        return self._directory

    @property
    def host_name(self) -> str:
        """The host name that the agent sees on every target."""
        return self.hostname or self.name

    def port(self, name: str) -> Port:
        """Return the port called `name`."""
        return next(port for port in self.ports if port.name == name)

    def expand(self, text: str, **values: dict[str, str] | str) -> str:
        """Replace `{agent}`, `{volumes.NAME}` and `{ports.NAME}` in `text`."""

        def replace(match: re.Match[str]) -> str:
            table, _, key = match[1].partition(".")
            value = values.get(table)
            found = value.get(key) if isinstance(value, dict) else value
            if found is None or (isinstance(value, str) and key):
                msg = f"agent '{self.name}': nothing called {match[0]} on this target"
                raise InvalidInput(msg, hint="see the placeholders in docs/agents.md")
            return str(found)

        return _PLACEHOLDER.sub(replace, text)

    @model_validator(mode="after")
    def _add_inference(self) -> Self:
        for used in self.inference:
            env = used.preset.env
            if env not in self.secrets:
                ref = used.key or SecretRef(source="env", id=env)
                self.secrets[env] = ref
            if used.url:
                self.env.setdefault(base_url_name(env), used.preset.url)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [*self._problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> list[str]:
        problems = []
        if (self.image is None) == (self.build is None):
            problems.append("exactly one of image and build")
        for kind, names in (
            ("volumes", [v.name for v in self.volumes]),
            ("ports", [p.name for p in self.ports]),
        ):
            twice = sorted({n for n in names if names.count(n) > 1})
            problems += [f"{kind}: '{name}' is there twice" for name in twice]
        both = sorted(self.secrets.keys() & self.env.keys())
        problems += [f"'{name}' is both in env and in secrets" for name in both]
        for name in self.secret_files:
            if name not in self.secrets:
                problems.append(f"secret_files: there is no secret '{name}'")
            if f"{name}_FILE" in self.env or f"{name}_FILE" in self.secrets:
                problems.append(f"'{name}_FILE' is set by the target: secret_files")
        problems += self._misplaced_files()
        ports = {p.name for p in self.ports}
        if self.health and self.health.http and self.health.http.port not in ports:
            problems.append(f"health.http.port: no port '{self.health.http.port}'")
        known = {f"ports.{p}" for p in ports}
        known |= {f"volumes.{v.name}" for v in self.volumes} | {"agent"}
        texts = [*self.command, *self.env.values()]
        texts += self.host.command if self.host else []
        used = {m[1] for text in texts for m in _PLACEHOLDER.finditer(text)}
        problems += [f"no such placeholder: {{{u}}}" for u in sorted(used - known)]
        return problems

    def _misplaced_files(self) -> Iterator[str]:
        files = [PurePosixPath(path) for path in self.secret_files.values()]
        if len(set(files)) < len(files):
            yield "secret_files: two files have one path"
        for file in files:
            if len(file.parts) < 4:  # noqa: PLR2004 - as /run/secrets/token
                yield f"secret_files: '{file}' needs a directory of its own"
            for volume in self.volumes:
                path = PurePosixPath(volume.path)
                if file.is_relative_to(path) or path.is_relative_to(file.parent):
                    yield f"secret_files: '{file}' and volume '{volume.name}' overlap"


_PLACEHOLDER = re.compile(r"\{((?:volumes|ports)\.[a-z0-9-]+|agent)\}")


def load_agent(path: Path) -> AgentSpec:
    """Read and validate one agent.yaml.

    Raises `NotFound` when there is no such file, and `InvalidInput` with one line per
    mistake: file, field, what is allowed, and the value that was there.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = f"no agent spec at {path}"
        raise NotFound(msg, hint="see agents/tally/agent.yaml for one") from None
    except RecursionError:
        raise InvalidInput(f"{path}: it is nested too deeply") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        msg = f"{path}: not YAML: {_without_the_line(error)}"
        raise InvalidInput(msg) from None  # its text quotes the line, perhaps a secret
    if not isinstance(raw, dict):
        msg = f"{path}: a mapping is expected, not {type(raw).__name__}"
        raise InvalidInput(msg)
    try:
        spec = AgentSpec.model_validate(raw)
    except ValidationError as error:
        raise InvalidInput(
            describe_mistakes(path, error),
            hint="`lobstertrap schema` prints every field",
        ) from None
    spec._directory = path.parent.resolve()  # noqa: SLF001
    return spec


def describe_mistakes(path: Path, error: ValidationError) -> str:
    """Return one line per mistake: file, field, what is allowed, the value."""
    lines = []
    for mistake in error.errors(include_url=False):
        place = ".".join(str(part) for part in mistake["loc"]) or "(the whole file)"
        what = mistake["msg"].removeprefix("Value error, ")
        lines.append(f"{path}: {place}: {what}{_shown(mistake)}")
    return "\n".join(lines)


_SECRET_FIELDS = {"secrets", "secret_files", "inference", "key", "access_key"}
_SECRET_FIELDS |= {"secret_key", "session_token"}
"""Where somebody may have written the value itself, in a spec or in the settings."""


def _shown(mistake: Any) -> str:
    if mistake["type"] in ("missing", "extra_forbidden"):  # its name is the mistake
        return ""
    if isinstance(mistake["input"], (dict, list, BaseModel)):
        return ""
    if _SECRET_FIELDS.intersection(mistake["loc"]):
        return ""
    found = re.sub(r"//[^/\s]*@", "//***@", repr(mistake["input"]))
    return f" (found {found})"


def _without_the_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        what = error.problem or "it cannot be read"
        return f"{what} (line {mark.line + 1}, column {mark.column + 1})"
    return "it holds bytes that are not text in UTF-8"
