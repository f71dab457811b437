"""One image registry: whether it has an image, by which digest, for which platform."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from lobstertrap.errors import AccessDenied, Permanent, Unavailable

_SECONDS: Final = 30.0
_LARGEST: Final = 8 << 20  # of a manifest or a config
_API_HOSTS: Final = {"docker.io": "registry-1.docker.io"}
_MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.oci.image.index.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """A registry and a path in it, `host[:port]/path`, where images are pushed."""

    place: str
    insecure: bool = False
    """Whether it speaks HTTP, or has a certificate that nobody knows."""
    auth_files: Sequence[Path] = ()
    """Where `podman login` and `docker login` keep credentials; the first that fits."""

    @property
    def insecure_host(self) -> str | None:
        """The host that speaks HTTP, if this one does."""
        return self.place.partition("/")[0] if self.insecure else None

    def digest(self, name: str, tag: str) -> str | None:
        """Return the digest of the image's manifest, or None when it is not there."""
        answer = self._ask("HEAD", name, f"manifests/{tag}")
        if answer is None:
            return None
        found = answer[0].get("Docker-Content-Digest")
        if found is None:
            raise Permanent(f"registry {self.place} names no digest for {name}:{tag}")
        return str(found)

    def platforms(self, name: str, digest: str) -> frozenset[str]:
        """Return what an image is for, `linux/amd64`; none when it is not there."""
        manifest = self._json(name, f"manifests/{digest}")
        if "manifests" in manifest:
            each = [m.get("platform") or {} for m in manifest["manifests"]]
        else:
            config = (manifest.get("config") or {}).get("digest")
            each = [self._json(name, f"blobs/{config}")] if config else []
        found = {f"{p.get('os')}/{p.get('architecture')}" for p in each}
        return frozenset(found - {"None/None", "unknown/unknown"})

    def login(self) -> tuple[str, str] | None:
        """Return user and password as `podman login` left them here, if it did."""
        packed = self._packed(self.place.partition("/")[0])
        if packed is None:
            return None
        user, _, password = base64.b64decode(packed).decode().partition(":")
        return user, password

    def _json(self, name: str, what: str) -> dict[str, Any]:
        answer = self._ask("GET", name, what)
        try:
            found = json.loads(answer[1]) if answer else {}
        except ValueError as error:
            raise Permanent(f"registry {self.place} answers no JSON") from error
        return found if isinstance(found, dict) else {}

    def _ask(
        self, method: str, name: str, what: str
    ) -> tuple[Mapping[str, str], bytes] | None:
        """Return headers and body, or None when there is no such thing."""
        host, _, path = self.place.partition("/")
        scheme = "http" if self.insecure else "https"
        repository = f"{path}/{name}" if path else name
        packed = self._packed(host)
        try:
            return self._send(
                method,
                f"{scheme}://{_API_HOSTS.get(host, host)}/v2/{repository}/{what}",
                f"Basic {packed}" if packed else None,
            )
        except urllib.error.HTTPError as error:
            with error:
                if error.code == http.client.NOT_FOUND:
                    return None
                raise self._error(error.code) from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(
                f"registry {self.place} does not answer: {error}",
                hint="see registry in lobstertrap.toml",
            ) from error

    def _send(
        self, method: str, url: str, authorization: str | None
    ) -> tuple[Mapping[str, str], bytes]:
        request = urllib.request.Request(  # noqa: S310 - http or https, see above
            url, method=method, headers={"Accept": _MANIFESTS}
        )
        if authorization:  # for the registry, not for where it may send us to
            request.add_unredirected_header("Authorization", authorization)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310
                return answer.headers, answer.read(_LARGEST)
        except urllib.error.HTTPError as error:
            challenge = error.headers.get("WWW-Authenticate", "")
            if error.code != http.client.UNAUTHORIZED or "Bearer" not in challenge:
                raise
            if authorization and authorization.startswith("Bearer"):
                raise
            with error:
                token = self._token(challenge, authorization)
            return self._send(method, url, f"Bearer {token}")

    def _token(self, challenge: str, authorization: str | None) -> str:
        """Return a token from whoever the registry sends us to."""
        fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        asked = {k: fields[k] for k in ("service", "scope") if k in fields}
        url = f"{fields.get('realm', '')}?{urlencode(asked)}"
        if not url.startswith(("https://", "http://")):
            raise Permanent(f"registry {self.place} asks for a login that is unknown")
        request = urllib.request.Request(url)  # noqa: S310 - checked above
        if authorization:
            request.add_header("Authorization", authorization)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310
            found = json.loads(answer.read())
        return str(found.get("token") or found.get("access_token"))

    def _packed(self, host: str) -> str | None:
        """Return user and password, packed as the Authorization header wants them."""
        for file in self.auth_files:
            with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
                auths = json.loads(file.read_text(encoding="utf-8"))["auths"]
                for key in (self.place, host, f"https://{host}"):
                    if key in auths:
                        packed = str(auths[key]["auth"])
                        base64.b64decode(packed, validate=True)
                        return packed
        return None

    def _error(self, status: int) -> AccessDenied | Permanent | Unavailable:
        if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
            return AccessDenied(
                f"registry {self.place} refuses the credentials (HTTP {status})",
                hint=f"podman login {self.place.partition('/')[0]}",
            )
        if status >= http.client.INTERNAL_SERVER_ERROR:
            return Unavailable(f"registry {self.place} answers HTTP {status}")
        return Permanent(f"registry {self.place} answers HTTP {status}")
