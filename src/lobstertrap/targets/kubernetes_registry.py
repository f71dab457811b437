"""One image registry: whether it has an image, and by which digest."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from lobstertrap.errors import AccessDenied, Permanent, Unavailable

_SECONDS: Final = 30.0
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

    def digest(self, name: str, tag: str) -> str | None:
        """Return the digest of the image's manifest, or None when it is not there."""
        host, _, path = self.place.partition("/")
        scheme = "http" if self.insecure else "https"
        repository = f"{path}/{name}" if path else name
        url = f"{scheme}://{host}/v2/{repository}/manifests/{tag}"
        try:
            found = self._head(url, self._basic(host))
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
        if found is None:
            raise Permanent(f"registry {self.place} names no digest for {name}:{tag}")
        return found

    def _head(self, url: str, authorization: str | None) -> str | None:
        request = urllib.request.Request(  # noqa: S310 - http or https, see above
            url, method="HEAD", headers={"Accept": _MANIFESTS}
        )
        if authorization:
            request.add_header("Authorization", authorization)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310
                digest = answer.headers.get("Docker-Content-Digest")
                return str(digest) if digest else None
        except urllib.error.HTTPError as error:
            challenge = error.headers.get("WWW-Authenticate", "")
            if error.code != http.client.UNAUTHORIZED or "Bearer" not in challenge:
                raise
            if authorization and authorization.startswith("Bearer"):
                raise
            with error:
                token = self._token(challenge, authorization)
            return self._head(url, f"Bearer {token}")

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

    def _basic(self, host: str) -> str | None:
        for file in self.auth_files:
            with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
                auths = json.loads(file.read_text(encoding="utf-8"))["auths"]
                for key in (self.place, host, f"https://{host}"):
                    if key in auths:
                        packed = str(auths[key]["auth"])
                        base64.b64decode(packed, validate=True)
                        return f"Basic {packed}"
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
