"""Images on their way to a cluster: built by a Podman engine, pushed, run by digest."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lobstertrap import __version__
from lobstertrap.agent import AgentSpec
from lobstertrap.errors import (
    AccessDenied,
    InvalidInput,
    Permanent,
    Refused,
    Unavailable,
)
from lobstertrap.targets import podman_python
from lobstertrap.targets.kubernetes_registry import Registry
from lobstertrap.targets.podman_api import PodmanApi
from lobstertrap.targets.podman_archive import platform as own_platform
from lobstertrap.targets.podman_archive import write_image
from lobstertrap.targets.podman_images import Images
from lobstertrap.targets.podman_images import identity as identity_of

_MOVER: Final = "localhost/lobstertrap/mover"
_PUSH_SECONDS: Final = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterImages:
    """What a target needs to bring images to its cluster."""

    target: str
    registry: Registry | None
    engine: PodmanApi | None
    """The engine that builds and pushes; it need not be where agents run."""
    build_args: Mapping[str, str]
    auth_files: Sequence[Path] = ()
    """Where `podman login` keeps the registries' credentials."""
    mover: str | None = None
    """A mover image that the cluster can pull; one is made and pushed without it."""

    def agent_image(self, agent: AgentSpec, *, platform: str) -> str:
        """Build or pull the image, push it, and return it by its digest."""
        named = agent.image or ""
        # One that only an engine has under that name is pushed like any other.
        if "@sha256:" in named and not named.startswith("localhost/"):
            return named
        images, registry = self._tools(f"agent '{agent.name}'")
        identity = images.ensure(agent, platform=platform)
        return self._pushed(registry, identity, agent.name)

    def mover_image(self, *, platform: str) -> str:
        """Return the mover's image by its digest, made and pushed when it is not."""
        if self.mover is not None:
            return self.mover
        images, registry = self._tools("the mover")
        tag = f"{_MOVER}:{podman_python.mover_digest()[:12]}"
        if platform != own_platform():
            tag = f"{_MOVER}:{__version__}"
            if images.find(tag) is None:
                raise InvalidInput(
                    f"target '{self.target}' is {platform}, and there is no mover "
                    "image for it",
                    hint="build deployments/mover/Containerfile for that platform, "
                    "push it, and name it in mover_image",
                )
        found = images.find(tag) or images.find(_make_mover(images, tag))
        if found is None:
            raise Unavailable(f"image {tag} is gone after it was made")
        return self._pushed(registry, identity_of(found), "mover")

    def refuse_other_platform(self, image: str, *, platform: str) -> None:
        """Raise `Refused` for an image that its registry says is for other platforms.

        A registry that only the cluster reaches is no mistake: nothing is known then.
        """
        place, _, rest = _full_name(image).rpartition("/")
        name, _, digest = rest.partition("@")
        host = place.partition("/")[0]
        ours = self.registry is not None and self.registry.insecure_host == host
        registry = Registry(place=place, insecure=ours, auth_files=self.auth_files)
        try:
            found = registry.platforms(name.partition(":")[0], digest)
        except (AccessDenied, Permanent, Unavailable):
            return
        if found and "/".join(platform.split("/")[:2]) not in found:
            raise Refused(
                f"image {image} is for {', '.join(sorted(found))}, target "
                f"'{self.target}' is {platform}",
                hint="build or name an image for that platform",
            )

    def _tools(self, what: str) -> tuple[Images, Registry]:
        if self.engine is None or self.registry is None:
            raise InvalidInput(
                f"target '{self.target}': {what} has no image that a cluster can pull",
                hint="set registry and engine for the target in lobstertrap.toml, or "
                "name images by digest",
            )
        images = Images(api=self.engine, target=self.target, build_args=self.build_args)
        return images, self.registry

    def _pushed(self, registry: Registry, identity: str, name: str) -> str:
        """Push unless it is there; the tag is the identity's, so it never changes."""
        tag = identity.removeprefix("sha256:")[:24]
        digest = registry.digest(name, tag)
        if digest is None:
            self._push(registry, identity, f"{registry.place}/{name}:{tag}")
            digest = registry.digest(name, tag)
        if digest is None:
            raise Unavailable(f"{registry.place}/{name}:{tag} is gone after its push")
        return f"{registry.place}/{name}@{digest}"

    def _push(self, registry: Registry, identity: str, destination: str) -> None:
        if self.engine is None:
            return
        said = b""
        with self.engine.stream(
            "POST",
            f"/images/{identity}/push",
            seconds=_PUSH_SECONDS,
            headers=_login_header(registry),
            destination=destination,
            tlsVerify=not registry.insecure,
        ) as pieces:
            for piece in pieces:
                said += piece
        failed = _push_error(said)
        if failed:
            denied = "unauthorized" in failed or "denied" in failed
            raise (AccessDenied if denied else Unavailable)(
                f"target '{self.target}': {destination} cannot be pushed: {failed}",
                hint=f"podman login {registry.place.partition('/')[0]}"
                if denied
                else "see registry in lobstertrap.toml",
            )


def _make_mover(images: Images, tag: str) -> str:
    with tempfile.TemporaryFile() as archive:
        write_image(
            archive,
            tag=tag,
            layers=[
                podman_python.python_layer,
                podman_python.packages_layer,
                podman_python.own_layer,
            ],
            env={**podman_python.ENVIRONMENT, "PYTHONPATH": podman_python.APPLICATION},
        )
        archive.seek(0)
        images.load(iter(lambda: archive.read(1 << 20), b""))
    return tag


def _login_header(registry: Registry) -> dict[str, str]:
    """Return our login for an engine that may be elsewhere and has none of its own."""
    login = registry.login()
    if login is None:
        return {}
    fields = {"username": login[0], "password": login[1]}
    packed = base64.urlsafe_b64encode(json.dumps(fields).encode())
    return {"X-Registry-Auth": packed.decode()}


def _full_name(image: str) -> str:
    """Return the image's name with the registry that a short one means."""
    first, slash, _ = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return image
    return f"docker.io/{image}" if slash else f"docker.io/library/{image}"


def _push_error(said: bytes) -> str:
    """Return the error in the lines of a push, if there is one."""
    for line in said.splitlines():
        try:
            event: Any = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("error"):
            return " ".join(str(event["error"]).split())
    return ""
