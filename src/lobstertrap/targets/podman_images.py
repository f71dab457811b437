"""Images on one Podman engine: built, pulled, carried from engine to engine."""

from __future__ import annotations

import json
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from lobstertrap import image as context
from lobstertrap.agent import AgentSpec
from lobstertrap.errors import InvalidInput, NotFound, Permanent, Refused, Unavailable
from lobstertrap.targets.podman_api import PodmanApi

_BUILD_SECONDS = 1800.0
_PULL_SECONDS = 1800.0
_LOAD_SECONDS = 1800.0
_LOG_LINES = 15
_OCI = "oci-archive"
_DOCKER = "docker-archive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images of one engine; an identity is `sha256:` and the config's digest."""

    api: PodmanApi
    target: str
    build_args: Mapping[str, str]

    def ensure(self, agent: AgentSpec, *, platform: str) -> str:
        """Build or pull what is not here; return the identity. See `Target`."""
        reference = agent.image or context.image_tag(agent, self.build_args)
        found = self.find(reference) or self.find(carried_name(reference))
        if found is None and agent.image is None:
            self._build(agent, reference)
            found = self.find(reference)
        elif found is None:
            self._pull(agent, reference)
            found = self.find(reference)
        if found is None:
            raise NotFound(f"image {reference} is not on target '{self.target}'")
        built_for = f"{found['Os']}/{found['Architecture']}"
        if built_for != platform:
            raise Refused(
                f"image {reference} is for {built_for}, "
                f"target '{self.target}' is {platform}",
                hint="build or name an image for that platform",
            )
        return identity(found)

    def find(self, reference: str) -> Any | None:
        """Return what the engine knows of an image, or None."""
        return self.api.find(f"/images/{quote(reference, safe='')}/json")

    def export(self, image: str) -> Iterator[bytes]:
        """Stream the image in the format that keeps its identity."""
        found = self.find(image)
        if found is None:
            raise NotFound(f"image {image} is not on target '{self.target}'")
        kept = _DOCKER if "docker" in found.get("ManifestType", "") else _OCI
        path = f"/images/{found['Id']}/get"
        with self.api.stream("GET", path, format=kept) as pieces:
            yield from pieces

    def load(self, archive: Iterable[bytes]) -> str:
        """Load an exported image and return its identity."""
        # A body of unknown length would be sent in chunks, and an error that comes
        # in the middle of sending it would be lost; so it is spooled first.
        with tempfile.TemporaryFile() as spool:
            for piece in archive:
                spool.write(piece)
            spool.seek(0)
            loaded = self.api.post("/images/load", data=spool, seconds=_LOAD_SECONDS)
        name = loaded["Names"][0]
        found = self.find(name)
        if found is None:
            raise NotFound(f"image {name} is not on target '{self.target}'")
        return identity(found)

    def tag(self, image: str, reference: str) -> None:
        """Give the image another name."""
        repository, _, tag = reference.rpartition(":")
        path = f"/images/{quote(image, safe='')}/tag"
        self.api.post(path, repo=repository, tag=tag)

    def _build(self, agent: AgentSpec, tag: str) -> None:
        build = agent.build
        if build is None:
            raise InvalidInput(f"agent '{agent.name}' has neither an image nor a build")
        last: deque[str] = deque(maxlen=_LOG_LINES)
        with tempfile.TemporaryFile() as archive:
            context.write_context(agent, archive)
            archive.seek(0)
            with self.api.stream(
                "POST",
                "/build",
                data=archive,
                seconds=_BUILD_SECONDS,
                dockerfile=build.containerfile,
                t=tag,
                buildargs=dict(context.build_args(agent, self.build_args)),
                layers=True,
                forcerm=True,
                labels={"io.lobstertrap.agent": agent.name},
            ) as pieces:
                failed = _read_build(pieces, last)
        if failed is not None:
            kind = Unavailable if _no_registry(failed) else Permanent
            raise kind(
                f"agent '{agent.name}': the image does not build on '{self.target}': "
                f"{failed}" + "".join(f"\n  {line}" for line in last),
                hint=_build_hint(failed),
            )

    def _pull(self, agent: AgentSpec, reference: str) -> None:
        # Errors come as lines of a successful answer.
        failed = None
        with self.api.stream(
            "POST", "/images/pull", seconds=_PULL_SECONDS, reference=reference
        ) as pieces:
            for event in _events(pieces):
                failed = event.get("error") or failed
        if failed:
            kind = Unavailable if _no_registry(failed) else NotFound
            raise kind(
                f"agent '{agent.name}': image {reference} cannot be pulled on "
                f"'{self.target}': {' '.join(failed.split())}",
                hint="check the name, and log in to its registry on the target",
            )


def carried_name(reference: str) -> str:
    """Return the name under which an image is kept that came from another engine.

    One that was named by digest loses that name on the way: only its contents, and so
    its identity, stay the same.
    """
    _, at, digest = reference.partition("@sha256:")
    return f"localhost/lobstertrap/carried:{digest[:24]}" if at else reference


def identity(found: Mapping[str, Any]) -> str:
    """Return the identity of an inspected image."""
    return f"sha256:{found['Id'].removeprefix('sha256:')}"


def _read_build(pieces: Iterable[bytes], last: deque[str]) -> str | None:
    """Keep the last lines of the build; return its error."""
    failed = None
    for event in _events(pieces):
        if "error" in event:
            failed = str(event["error"]).strip()
        for line in str(event.get("stream", "")).splitlines():
            last.append(line.rstrip())
    return failed


def _no_registry(failed: str) -> bool:
    return "pinging container registry" in failed and (
        "no such host" in failed or "dial tcp" in failed or "timeout" in failed
    )


def _build_hint(failed: str) -> str:
    if _no_registry(failed):
        return (
            "no registry in reach: make a base image with deployments/base-image/build "
            "and name it in the target's build_args.BASE"
        )
    return "the lines above are the end of the build"


def _events(pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a stream, however they are cut into pieces."""
    decoder, buffer = json.JSONDecoder(), ""
    for piece in pieces:
        buffer += piece.decode("utf-8", "replace")
        while buffer := buffer.lstrip():
            try:
                event, end = decoder.raw_decode(buffer)
            except ValueError:
                break
            buffer = buffer[end:]
            yield event
