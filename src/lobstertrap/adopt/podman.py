"""Originals on a Podman engine: containers of claw-installer, or of `podman run`."""

from __future__ import annotations

import io
import math
import re
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lobstertrap.adopt.found import Found, refuse_other_sources, with_names_apart
from lobstertrap.adopt.podman_shape import describe, is_foreign, mounts_of, name_of
from lobstertrap.errors import LobsterTrapError, NotFound, Refused
from lobstertrap.lease import Adopted
from lobstertrap.redaction import SecretValue
from lobstertrap.targets.podman_api import PodmanApi
from lobstertrap.targets.podman_spec import AGENT
from lobstertrap.targets.podman_status import is_running, is_settled

_UNIT = "PODMAN_SYSTEMD_UNIT"
_ANONYMOUS = re.compile(r"[0-9a-f]{64}")
_SETTLE_SECONDS = 15.0
_PASSWD_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class PodmanOriginals:
    """The containers of one engine that are not ours; see `Originals`."""

    api: PodmanApi
    target: str

    def find(self) -> list[Found]:
        """Return the containers that keep state in a volume or a directory."""
        found = [self._describe(one) for one in self._containers()]
        return with_names_apart(one for one in found if one.mounts)

    def keep_secret(
        self, found: Found, *, env: str, secret: str, value: SecretValue | None
    ) -> None:
        """Make a Podman secret of the value, in place of an older one."""
        if value is None:
            raise NotFound(f"{found.original}: no value of {env} is known")
        self.api.delete(f"/secrets/{secret}")
        self.api.post("/secrets/create", data=value.reveal().encode(), name=secret)

    def confirm(self, adopted: Adopted) -> None:
        """Compare with the container; one that is gone had named volumes, of nobody."""
        found = self._container(adopted)
        if found is not None:
            own = [mount.source for mount in mounts_of(found)]
        else:
            volumes = self.api.get("/volumes/json") or []
            own = [v["Name"] for v in volumes if AGENT not in (v["Labels"] or {})]
        refuse_other_sources(adopted, own)

    def users(self, adopted: Adopted) -> list[str]:
        """Return every running container that has the state mounted."""
        sources = {*adopted.sources.values()}
        return sorted(
            (
                name_of(one)
                for one in self._containers()
                if is_running(one)
                and (
                    name_of(one) == adopted.original
                    or sources & {mount.source for mount in mounts_of(one)}
                )
            ),
            key=lambda name: (name != adopted.original, name),
        )

    def has_state(self, adopted: Adopted) -> bool:
        """Whether the volumes are there; directories are looked at by the mover."""
        return all(
            source.startswith("/") or self.api.find(f"/volumes/{source}/json")
            for source in adopted.sources.values()
        )

    def refuse_lasting(self, adopted: Adopted) -> None:
        """Refuse what systemd would start again, and what ends with its state."""
        found = self._container(adopted)
        if found is None:
            return
        unit = (found["Config"].get("Labels") or {}).get(_UNIT)
        if unit and is_running(found):
            raise Refused(
                f"container {adopted.original} on '{self.target}' belongs to the "
                f"systemd unit {unit}, which would start it again",
                hint=f"there: systemctl --user disable --now {unit} (as root without "
                "--user); then the same command again",
            )
        if found["HostConfig"].get("AutoRemove") and any(
            _ANONYMOUS.fullmatch(source) for source in adopted.sources.values()
        ):
            raise Refused(
                f"container {adopted.original} on '{self.target}' has its state in a "
                "volume without a name, and is removed with it when it stops (--rm)",
                hint=f"lobstertrap adopt {self.target} AGENT takes another snapshot; "
                "stop the container by hand, then restore that",
            )

    def stop(self, adopted: Adopted, *, seconds: float) -> None:
        """Stop the container; by an engine's own stop no restart policy applies."""
        deadline = time.monotonic() + seconds + _SETTLE_SECONDS
        while (found := self._container(adopted)) and not is_settled(found):
            if time.monotonic() > deadline:
                break
            if is_running(found):
                self._stop_once(found, seconds)
            time.sleep(0.05)
        left = self.users(adopted)
        if left:
            raise Refused(
                f"the state of {adopted.original} on '{self.target}' is in use: "
                f"{', '.join(left)} still runs",
                hint=f"there: podman stop {' '.join(left)}; then the same command",
            )

    def start(self, adopted: Adopted) -> None:
        """Start the container again, if it is there."""
        found = self._container(adopted)
        if found is None:
            raise NotFound(
                f"container {adopted.original} on '{self.target}' was removed when it "
                "stopped (--rm); its volumes are untouched"
            )
        if not is_running(found):
            self.api.post(f"/containers/{found['Id']}/start")

    def retire(self, adopted: Adopted) -> None:
        """Remove the stopped container; its volumes stay, whatever they are."""
        found = self._container(adopted)
        if found is not None:
            self.api.delete(f"/containers/{found['Id']}", v=False)

    def _container(self, adopted: Adopted) -> Any | None:
        found = self.api.find(f"/containers/{adopted.original}/json")
        return found if found is not None and is_foreign(found) else None

    def _containers(self) -> Iterator[Any]:
        for listed in self.api.get("/containers/json", all=True) or []:
            found = self.api.find(f"/containers/{listed['Id']}/json")
            if found is not None and is_foreign(found):
                yield found

    def _describe(self, container: Mapping[str, Any]) -> Found:
        image = self.api.find(f"/images/{container['Image']}/json") or {}
        passwd = self._passwd(container)
        return describe(
            container,
            image,
            passwd=passwd,
            changed=self._changed(container),
            secrets=self._secret_names(),
        )

    def _secret_names(self) -> frozenset[str]:
        listed = self.api.get("/secrets/json") or []
        return frozenset(secret["Spec"]["Name"] for secret in listed)

    def _passwd(self, container: Mapping[str, Any]) -> str:
        """Return the container's own /etc/passwd; nothing when it has none."""
        url = f"/containers/{container['Id']}/archive?path=/etc/passwd"
        try:
            with self.api.stream("GET", url) as pieces:
                data = b"".join(pieces)
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                file = archive.extractfile(archive.getmembers()[0])
                return file.read(_PASSWD_BYTES).decode(errors="replace") if file else ""
        except (LobsterTrapError, tarfile.TarError, IndexError):
            return ""

    def _changed(self, container: Mapping[str, Any]) -> list[str]:
        if container["HostConfig"].get("ReadonlyRootfs"):
            return []
        found = self.api.get(f"/containers/{container['Id']}/changes") or []
        return [str(change["Path"]) for change in found]

    def _stop_once(self, found: Mapping[str, Any], seconds: float) -> None:
        path = f"/containers/{found['Id']}"
        if found["State"]["Status"] == "paused":
            self.api.post(f"{path}/unpause")
        grace = math.ceil(max(seconds, found["Config"].get("StopTimeout") or 0))
        try:
            self.api.post(f"{path}/stop", seconds=grace + 60, timeout=grace)
        except NotFound:  # --rm: gone with its end
            return
